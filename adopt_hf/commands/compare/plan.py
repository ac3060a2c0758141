"""The plan of a comparison: which runs there are, and what makes it another comparison."""

import difflib
import hashlib
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adopt_hf.commands.run import is_script

SWEEP = (-1.0, -0.5, 0.0, 0.5, 1.0)  # decades around the given learning rate
LARGEST_FILE = 2**24  # bytes; larger files among the words of the command are data


class InputError(ValueError):
    """An error of the user's, which is one line on stderr and exit code 2."""


class Run(NamedTuple):
    """One run of the script."""

    optim: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.optim}_lr{lr_text(self.lr)}_seed{self.seed}"

    def arguments(self, output_dir: Path) -> list[str]:
        """Return the words that the command gets at its end."""
        chosen = {"optim": self.optim, "learning_rate": repr(self.lr), "seed": self.seed, "output_dir": output_dir}
        return [str(word) for name, value in chosen.items() for word in (f"--{name}", value)]


class Plan(NamedTuple):
    """A comparison.

    Args:
        command: The words after `--`.
        optims: The optimizers.
        lrs: The learning rates, in the order of size.
        seeds: The number of seeds: 0, 1, ...
        is_sweep: Whether the learning rates are those of `--lr-sweep`.
    """

    command: tuple[str, ...]
    optims: tuple[str, ...]
    lrs: tuple[float, ...]
    seeds: int
    is_sweep: bool

    @property
    def reference(self) -> str:
        """The optimizer that the others are compared with: the first AdamW, or else the last of all."""
        return next((name for name in self.optims if name.startswith("adamw")), self.optims[-1])

    def runs(self) -> list[Run]:
        """Return the runs in the order in which they start: complete pairs of a seed come early."""
        return [Run(optim, lr, seed) for seed in range(self.seeds) for lr in self.lrs for optim in self.optims]

    def identity(self) -> dict[str, Any]:
        """Return what must be the same when the comparison goes on."""
        return {
            "folder": os.getcwd(),
            "command": list(self.command),
            "optims": list(self.optims),
            "lrs": list(self.lrs),
            "seeds": self.seeds,
            "sweep": self.is_sweep,
            "files": {
                word: hashlib.sha256(Path(word).read_bytes()).hexdigest() for word in filter(_is_text, self.command)
            },
        }


def why_another(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Return what tells two identities apart, or None if the second can go on from the first.

    More seeds are no other comparison.
    """
    for name in ("command", "folder", "optims", "lrs", "sweep"):
        if before.get(name) != now[name]:
            return f"{name} is {_shown(before.get(name))} there and {_shown(now[name])} here"
    if before.get("seeds", 0) > now["seeds"]:
        return f"seeds is {before['seeds']} there and {now['seeds']} here"
    changed = [word for word, digest in before.get("files", {}).items() if now["files"].get(word) != digest]
    return f"{changed[0]} has been changed since" if changed else None


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return repr(" ".join(lr_text(one) if isinstance(one, float) else str(one) for one in value))
    return repr(value)


def _is_text(word: str) -> bool:
    path = Path(word)
    return path.is_file() and path.stat().st_size < LARGEST_FILE


def lr_text(lr: float) -> str:
    """Return a learning rate as people write it: 3e-4."""
    mantissa, exponent = f"{lr:.6e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# ----- from the command line -----


def parse_optims(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the names in a text such as 'adopt,adamw_torch_fused'.

    Raises:
        InputError: If transformers has no optimizer of such a name, or one stands there twice.
    """
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            begins = [one for one in known if name and one.startswith(name)]
            near = (begins or difflib.get_close_matches(name, known, n=3, cutoff=0.5))[:3]
            hint = f"did you mean {' or '.join(near)}?" if near else f"write any of {', '.join(known)}"
            raise InputError(f"--optims has {name!r}, which is no optimizer of transformers: {hint}")
        if names.count(name) > 1:
            raise InputError(f"--optims has {name!r} twice: write each name once")
    return names


def parse_lrs(text: str) -> tuple[float, ...]:
    """Return the learning rates in a text such as '3e-4,1e-3', in the order of size.

    Raises:
        InputError: If one is no number above 0, or stands there twice.
    """
    found: list[float] = []
    for word in text.split(","):
        try:
            lr = float(word)
        except ValueError:
            raise InputError(f"--lrs has {word.strip()!r}, which is no number: write it as in 3e-4,1e-3") from None
        if not 0 < lr < math.inf:
            raise InputError(f"--lrs has {word.strip()!r}: a learning rate must be finite and above 0")
        if lr_text(lr) in map(lr_text, found):
            raise InputError(f"--lrs has {word.strip()!r} twice: write each learning rate once")
        found.append(lr)
    return tuple(sorted(found))


def given_lr(command: Sequence[str]) -> str | None:
    """Return the learning rate among the words of the command, or None."""
    found = None
    for i, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name in ("--learning_rate", "--learning-rate"):
            found = value if equals else command[i + 1] if i + 1 < len(command) else None
    return found


def swept(lrs: Sequence[float]) -> tuple[float, ...]:
    """Return five learning rates around the one in `lrs`, half a decade apart, with two digits.

    Raises:
        InputError: If there are several.
    """
    if len(lrs) != 1:
        raise InputError(f"--lr-sweep picks five learning rates around one, and --lrs has {len(lrs)}: write one")
    return tuple(float(f"{lrs[0] * 10**decades:.1e}") if decades else lrs[0] for decades in SWEEP)


def parse_count(text: str, option: str) -> int:
    """Return a whole number above 0.

    Raises:
        InputError: If it is none.
    """
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise InputError(f"{option} is {text!r}: write a whole number above 0")
    return count


def program(command: Sequence[str]) -> list[str]:
    """Return the words that start the command: a script and `-m MODULE` run in this Python.

    Raises:
        InputError: If there is no such script or command.
    """
    first, *rest = command
    if first == "-m":
        if not rest:
            raise InputError("-m needs the name of a module: write -- -m MODULE ARGS...")
        return [sys.executable, "-m", *rest]
    if is_script(first):
        if not os.path.isfile(first):
            raise InputError(f"can't open file {first!r}: no such script")
        return [sys.executable, first, *rest]
    path = shutil.which(first)
    if path is None:
        raise InputError(f"{first!r} is neither a command on the PATH nor a script: write -- COMMAND ARGS...")
    return [path, *rest]
