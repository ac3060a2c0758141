"""The command line that the experiments share: python -m experiments NAME [--quick | --full] [--folder F]."""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from examples.shared.errors import one_line
from experiments.harness import runs as parts
from experiments.harness.runs import FOLDER, RESULTS, InputError, Part

TRIED = FOLDER.with_name("quick")  # where a short run is kept that is no result


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of all experiments of the paper."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = found.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="Run the small size, offline, in minutes (default).")
    size.add_argument("--full", action="store_true", help="Run the full size, with the real data.")
    found.add_argument("--folder", type=Path, help=f"Folder of the runs (default: {FOLDER}, or {FOLDER}_full).")
    found.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="Runs at once, with one thread each.")
    found.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="Settings of the runs, e.g. steps=1000 seeds=16."
    )
    found.add_argument("--missing", action="store_true", help="Do only the runs that docs/evidence.md lacks.")
    return found


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None, **quick: Any) -> argparse.Namespace:
    """Add `--quick` and `--full`, the default, to the options of an experiment, and parse.

    Args:
        parser: The parser with the experiment's own options.
        arguments: The words of the command line (default: those of this process).
        quick: The defaults with `--quick`, by option. An option that is given wins.
    """
    said = ", ".join(f"--{name} {value}" for name, value in quick.items() if value is not None)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=f"Try it out: the defaults are then {said}.")
    size.add_argument("--full", action="store_true", help="Run the full size (default).")
    if parser.parse_known_args(arguments)[0].quick:
        parser.set_defaults(**quick)
        for path in (value for value in quick.values() if isinstance(value, Path)):
            path.parent.mkdir(parents=True, exist_ok=True)
    return parser.parse_args(arguments)


def missing(wanted: Iterable[Part], results: Path = RESULTS) -> list[Part]:
    """Return the parts that are not among the kept results."""
    wanted = list(wanted)
    experiments = {part.experiment for part in wanted}
    there = {name: {parts.key(row["settings"]) for row in parts.kept(name, results)} for name in experiments}
    return [part for part in wanted if parts.key(part.settings) not in there[part.experiment]]


def folder(args: argparse.Namespace) -> Path:
    return args.folder or (FOLDER.with_name(f"{FOLDER.name}_full") if args.full else FOLDER)


def with_settings(wanted: Iterable[Part], assignments: Sequence[str]) -> list[Part]:
    """Return the parts with these settings, NAME=VALUE each, instead of their own. Equal parts become one.

    Raises:
        InputError: If no part has a setting of that name, or the value has another type than the parts' value.
    """
    wanted = list(wanted)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        having = [part for part in wanted if name in part.settings]
        if not equals or not having:
            known = sorted({setting for part in wanted for setting in part.settings})
            raise InputError(f"--set takes NAME=VALUE with a name among {', '.join(known)}; got {assignment!r}")
        value = _value(text)
        for part in having:
            was = part.settings[name]
            if type(was) is float and type(value) is int:
                value = float(value)
            if type(value) is not type(was):
                raise InputError(f"--set {name} must be a {type(was).__name__}, as {was!r} is; got {text!r}")
        wanted = [replace(part, settings={**part.settings, name: value}) if part in having else part for part in wanted]
    different: dict[str, Part] = {}
    for part in wanted:
        different.setdefault(json.dumps([part.experiment, dict(part.settings)]), part)
    return list(different.values())


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def words(config: Path, options: Mapping[str, Any]) -> list[str]:
    """Return the command line of a recipe with these options. An option that is None is left out."""
    given = ([f"--{name}", str(value)] for name, value in options.items() if value is not None)
    return ["--config", str(config), *itertools.chain.from_iterable(given)]


def fail(message: object) -> NoReturn:
    print(f"{Path(sys.argv[0]).stem}: error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def main(experiment: ModuleType) -> None:
    """Do the runs that are left, print the table and the claims, and draw the plot next to the runs."""
    args = parser(experiment.__doc__).parse_args()
    try:
        wanted = with_settings(experiment.parts(not args.full), args.set)
        todo = missing(wanted) if args.missing else wanted
        rows = parts.run(todo, experiment.one, folder(args), args.workers)
    except InputError as error:
        fail(error)
    if args.missing:
        settings = {parts.key(part.settings) for part in wanted}
        rows = [row for row in parts.kept(experiment.NAME) if parts.key(row["settings"]) in settings] + rows
    print(f"\n{experiment.table(rows)}\n")
    for claim in experiment.claims(rows):
        print(f"- {claim.claim}: {claim.ours} ({claim.conditions}): {claim.verdict}")
    plot = folder(args) / f"{experiment.NAME}.png"
    experiment.plot(rows, plot)
    print(f"\n{plot}")
