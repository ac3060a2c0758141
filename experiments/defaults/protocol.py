"""The protocol that decides on ADOPT's defaults for people who come from AdamW, and the command that runs it.

python -m experiments defaults                # what is not run yet, then docs/defaults.md
python -m experiments defaults --page_only    # the page, from the rows that are kept
python -m experiments defaults --stages decide rates
python -m experiments defaults --left         # how much is left

A part is one optimizer at one learning rate on one task, for some seeds at once. Each part is kept in runs/defaults
when it is over, and all of them in experiments/results/defaults.jsonl. A call may be killed at any time; the next
call does the parts that are missing. The most deciding parts come first: `stages`. All of them take about three hours
on two free cores. Other exponents than 1, and what is tried once, are run at AdamW's rate only.

The rule was written before the runs. experiments/defaults/decisions.py has it in words (RULE) and in code.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.defaults import page as defaults_page
from experiments.defaults.decisions import AGAIN
from experiments.defaults.tasks import TASKS
from experiments.defaults.training import Task, train
from experiments.harness import command
from experiments.harness import runs as parts
from experiments.harness.runs import InputError, Part

NAME = "defaults"
RESULTS = parts.RESULTS / f"{NAME}.jsonl"
FOLDER = Path("runs/defaults")
EXPONENTS = (1.0, 0.8, 0.65, 0.5)


@dataclass(frozen=True)
class Variant:
    """An optimizer with its options. AdamW takes only beta2 and lr_warmup.

    Args:
        beta2: A number; "task": the beta2 of the task, 0.9999 except in the long runs; "steps": 1 - 1/steps.
        warmup: The exponent of beta2_warmup, 0 for none.
        clip_exp: The `clip_exp` of `adopt_hf.ADOPT`, or "atan2" for experiments/defaults/atan2.py.
        lr_warmup: Whether the learning rate rises at the beginning, as in the task.
    """

    optimizer: str
    beta2: float | str = "task"
    warmup: float = 0.0
    clip_exp: float | str | None = 0.25
    lr_warmup: bool = True


ADAMWS = ("adamw-0.95", "adamw-0.999")


def adoptw(exponent: float) -> str:
    return f"adoptw-{exponent:g}"


VARIANTS = {
    "adamw-0.95": Variant("AdamW", 0.95),
    "adamw-0.999": Variant("AdamW", 0.999),
    "adopt": Variant("ADOPT"),
    **{adoptw(k): Variant("ADOPT", warmup=k) for k in EXPONENTS},
    **{f"{adoptw(k)}-beta2-{b:g}": Variant("ADOPT", b, k) for k in EXPONENTS for b in (0.95, 0.99)},
    "adamw-0.95-cold": Variant("AdamW", 0.95, lr_warmup=False),
    "adamw-0.999-cold": Variant("AdamW", 0.999, lr_warmup=False),
    **{f"{adoptw(k)}-cold": Variant("ADOPT", warmup=k, lr_warmup=False) for k in (1.0, 0.8)},
    **{f"{adoptw(1.0)}-clip-{c or 'none'}": Variant("ADOPT", warmup=1.0, clip_exp=c) for c in (None, 0.125, 0.5)},
    **{f"{adoptw(k)}-atan2": Variant("ADOPT", warmup=k, clip_exp="atan2") for k in (1.0, 0.8)},
    f"{adoptw(1.0)}-beta2-steps": Variant("ADOPT", "steps", 1.0),
}
DECIDING = ("adamw-0.95", "adamw-0.999", adoptw(1.0), adoptw(0.8), adoptw(0.65), adoptw(0.5), "adopt")
WARM_UP = ("adamw-0.95", "adamw-0.999", "adopt", adoptw(1.0))  # what decides on the warm-up
PLAIN = tuple(f"{adoptw(1.0)}-beta2-{beta2:g}" for beta2 in (0.95, 0.99))
ONCE = tuple(name for name in VARIANTS if name.endswith(("-cold", "-atan2", "-steps")) or "-clip-" in name)
ONCE_TASKS = ("gpt2_500", "gpt2_2000")
CLIP = (f"{adoptw(1.0)}-clip-0.5",)  # on all tasks: see docs/defaults.md, "The clip"
PILOT_SEEDS = (100,)
PILOT_RATES = {
    "lora": (3e-3, 1e-2, 3e-2),
    "llama": (3e-4, 1e-3, 3e-3, 1e-2),
    "loraplus": (1e-3, 3e-3, 1e-2),
    "mlp": (3e-3, 1e-2, 3e-2, 1e-1),
    "vit": (3e-4, 1e-3, 3e-3, 1e-2),
    "vae": (1e-3, 3e-3, 1e-2, 3e-2),
    "long_99": (3e-3, 1e-2, 3e-2),
}
SMALL = ("mlp", "vae", "gpt2_500", "lora", "llama", "vit")
LONG = ("long_99", "long_999")
REPEATED = ("long_999",)  # where a comparison went against the warm-up


def _parts_of(
    task: Task, names: Iterable[str], rates: Iterable[float], seeds: Sequence[int] | None = None
) -> list[Part]:
    """Chunks of seeds come first: a few seeds of all variants are worth more than all seeds of a few."""
    names, rates, found = list(names), list(rates), []
    seeds = range(task.seeds) if seeds is None else seeds
    for first in range(0, len(seeds), task.together):
        chunk = list(seeds[first : first + task.together])
        for lr in rates:
            for name in names:
                settings = {"task": task.name, "variant": name, "lr": lr, "steps": task.steps, "seeds": chunk}
                numbers = "-".join(map(str, (chunk[0], chunk[-1]) if len(chunk) > 1 else chunk))
                found.append(Part(NAME, f"{task.name}-{name}-lr{lr:g}-seed{numbers}", settings))
    return found


def stages() -> dict[str, list[Part]]:
    """All parts, the most deciding ones first; each in the first stage that wants it."""
    small, demo = [TASKS[name] for name in (*SMALL, "loraplus")], TASKS["demo"]
    long, large = [TASKS[name] for name in LONG], TASKS["gpt2_2000"]

    def at_adamws(tasks: Iterable[Task], names: Iterable[str]) -> list[Part]:
        return [part for task in tasks for part in _parts_of(task, names, task.rates[:1])]

    def at_others(tasks: Iterable[Task], names: Iterable[str]) -> list[Part]:
        return [part for task in tasks for part in _parts_of(task, names, task.rates[1:])]

    wanted: dict[str, list[Part]] = {
        "pilot": [
            part for name, rates in PILOT_RATES.items() for part in _parts_of(TASKS[name], ADAMWS, rates, PILOT_SEEDS)
        ],
        "decide": at_adamws((*small, demo, *long, large), WARM_UP),
        "again": [
            part
            for task in map(TASKS.__getitem__, REPEATED)
            for part in _parts_of(task, ("adopt", adoptw(1.0)), task.rates[:1], range(AGAIN, AGAIN + task.seeds))
        ],
        "clip": at_adamws((*small, demo, *long, large), CLIP),
        "rates": at_others((*small, *long, large, demo), WARM_UP),
        "exponents": at_adamws((*small, demo, *long, large), DECIDING),
        "plain": at_adamws((*small, demo, *long, large), PLAIN),
        "once": at_adamws([TASKS[name] for name in ONCE_TASKS], ONCE),
    }
    seen: set[str] = set()
    for stage, found in wanted.items():
        wanted[stage] = [part for part in found if part.name not in seen]
        seen |= {part.name for part in found}
    return wanted


def one(task: str, variant: str, lr: float, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Train these seeds of a task.

    Returns:
        {"losses": the held-out loss of each seed, None where it is not finite, "cpu_seconds"}.
    """
    torch.set_num_threads(1)
    began = time.process_time()
    chosen, options = TASKS[task], VARIANTS[variant]
    losses = train(
        chosen, seeds, lambda groups: make(options, groups, chosen.beta2, steps), lr, steps,
        warmup=None if options.lr_warmup else 0,
    )  # fmt: skip
    return {
        "losses": [round(loss, 5) if math.isfinite(loss) else None for loss in losses],
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def make(variant: Variant, groups: list[dict[str, Any]], beta2: float, steps: int) -> torch.optim.Optimizer:
    """The optimizer of a variant, with decoupled weight decay.

    Args:
        beta2: The beta2 of the task, for variants without their own.
    """
    if isinstance(variant.beta2, float):
        beta2 = variant.beta2
    elif variant.beta2 == "steps":
        beta2 = 1 - 1 / steps
    if variant.optimizer == "AdamW":
        return torch.optim.AdamW(groups, betas=(0.9, beta2), eps=1e-8, fused=True)
    if variant.clip_exp == "atan2":
        from experiments.defaults.atan2 import Atan2ADOPT

        return Atan2ADOPT(groups, betas=(0.9, beta2), beta2_warmup=variant.warmup)
    from adopt_hf import ADOPT

    return ADOPT(
        groups,
        betas=(0.9, beta2),
        decouple=True,
        clip_exp=variant.clip_exp,
        beta2_warmup=variant.warmup or False,
    )


def keep(rows: Iterable[dict[str, Any]], results: Path = RESULTS) -> list[dict[str, Any]]:
    """Add rows to those that are kept, by name; returns all, by name."""
    kept = {row["name"]: row for row in [*parts.lines(results), *rows]}
    found = [kept[name] for name in sorted(kept)]
    parts.keep(results, found)
    return found


def todo(chosen: Iterable[str], rows: Iterable[dict[str, Any]], only: Sequence[str] | None = None) -> list[Part]:
    """The parts of these stages, and of these tasks, that no row is of.

    Raises:
        InputError: There is no such stage or task, or a row has the name of a part and other settings.
    """
    found, there = stages(), {row["name"]: row for row in rows}
    chosen = list(chosen)
    for given, known, what in ((chosen, found, "stage"), (only or [], TASKS, "task")):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"there is no {what} {', '.join(unknown)}; there are {', '.join(known)}")
    left = []
    for stage in chosen:
        for part in found[stage]:
            row = there.get(part.name)
            if row is not None and row["settings"] != dict(part.settings):
                raise InputError(f"the row {part.name} in the results has other settings: remove it")
            if row is None and (only is None or part.settings["task"] in only):
                left.append(part)
    return left


def minutes(left: Iterable[Part], rows: Iterable[dict[str, Any]]) -> float:
    """Return the minutes of a core that these parts take, as other runs of their tasks took; NaN if a task has none."""
    taken: dict[str, list[float]] = {}
    for row in rows:
        s = row["settings"]
        if "cpu_seconds" in row["result"]:  # the first rows lack it
            taken.setdefault(s["task"], []).append(row["result"]["cpu_seconds"] / len(s["seeds"]))
    needed = ((part.settings["task"], len(part.settings["seeds"])) for part in left)
    return sum(statistics.median(taken.get(task, [math.nan])) * seeds for task, seeds in needed) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", default=list(stages()), help=f"Some of {', '.join(stages())}.")
    parser.add_argument("--tasks", nargs="+", help=f"Some of {', '.join(TASKS)} (default: all).")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="Folder of the finished parts until they are kept.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="File of JSON lines in which they are kept.")
    parser.add_argument("--page", type=Path, default=defaults_page.PAGE, help="Page with the markers.")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="Parts at once, with one thread each.")
    parser.add_argument("--page_only", action="store_true", help="Run nothing, but write the page.")
    parser.add_argument("--left", action="store_true", help="Say how much is left, and run nothing.")
    args = parser.parse_args()
    try:
        rows = keep(parts.read(NAME, args.folder), args.results)
        left = todo(args.stages, rows, args.tasks)
        if args.left:
            print(f"{len(rows)} rows are kept, {len(left)} parts are left: {minutes(left, rows):.0f} minutes of a core")
            return
        if not args.page_only:
            prepare({part.settings["task"] for part in left})
            parts.run(left, one, args.folder, args.workers)
            rows = keep(parts.read(NAME, args.folder), args.results)
        defaults_page.write(sys.modules[__name__], rows, args.page)
        print(args.page)
    except InputError as error:
        command.fail(error)


def prepare(names: Iterable[str]) -> None:
    """Make what is made once, before there are several processes: tokens, and the pretrained model."""
    for name in names:
        next(TASKS[name].batches(0))
