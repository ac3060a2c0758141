"""Arguments that the benchmarks have in common, and errors of one line."""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from experiments.step.peers import default_folder


def positive(text: str) -> int:
    """Return an integer from 1 on, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


def share(text: str) -> float:
    """Return a number in (0, 1], for argparse."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return value


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every benchmark."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=positive, default=9, help="Interleaved rounds after the warm-up (default: 9).")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--peers-path",
        type=lambda text: str(Path(text).resolve()),  # a process of its own may be in another folder
        default=default_folder(),
        help="Folder of packages that are kept apart from the environment (default: its folder `peers`).",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file to write (default: in experiments/results/step, by device, hardware and date).",
    )


def fail(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Exit with code 2 and one line."""
    parser.exit(2, f"{parser.prog}: error: {message}\n")


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """Exit if the device is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        fail(parser, "--device cuda, but torch finds no GPU here")


def target(parser: argparse.ArgumentParser, out: Path | None, default: Path) -> Path:
    """Return the path of the JSON. Exit before anything is measured if that would overwrite another run."""
    path = out or default
    if path.exists():
        fail(parser, f"{path} exists: name another file with --out, or remove it")
    return path


def command(experiment: str, arguments: list[str]) -> str:
    """Return the command as the docs show it. Folders are left out, because they differ between machines."""
    shown = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--out", "--peers-path"):
            skip = True
        elif not argument.startswith(("--out=", "--peers-path=")):
            shown.append(argument)
    return shlex.join(["python", "-m", "experiments", experiment, *shown])


def environment(device: str, threads: int | None) -> dict[str, str]:
    """Return what the environment of a measuring process has in addition."""
    found = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    return found | ({"DS_ACCELERATOR": "cpu"} if device == "cpu" else {})


def announced(units: Sequence[Any]) -> Iterator[Any]:
    """Yield the units one after the other, and say the title of each before it."""
    for number, unit in enumerate(units, 1):
        say(f"[{number}/{len(units)}] {unit.title()}")
        yield unit


def say(line: str) -> None:
    """Print a line to the standard error, because the tables are on the standard output."""
    print(line, file=sys.stderr, flush=True)
