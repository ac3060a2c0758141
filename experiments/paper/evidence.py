"""Write docs/evidence.md and its plots from the results.

python -m experiments evidence
python -m experiments evidence --folder runs/paper_full    # what has been run at full size takes the place

The runs are kept in experiments/results/<experiment>.jsonl, a run a line, and the page is written from these files
only. An experiment comes in when all its runs are in the folder, at one size; later runs of that size are added, and a
run that is kept stays as it is (to measure it again, remove its line).
"""

import argparse
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from experiments.harness import pages, runs
from experiments.harness.command import fail
from experiments.harness.machine import ROOT, listed
from experiments.harness.runs import FOLDER, RESULTS, InputError
from experiments.table import load

PAGE = ROOT / "docs" / "evidence.md"
STAMP = "Made of"
RULES = """\
A verdict is computed from the numbers by the rule that stands with each experiment. What is trained with seeds is
compared by paired differences: of two settings the runs of one seed are a pair, and the differences of the pairs have a
95 % interval (Student's t). No row is exempt from its rule.

- **reproduced**: our numbers say what the paper says; of paired differences the whole interval does;
- **contradicted**: they say the opposite; of paired differences the whole interval does;
- **not at this scale**: neither, so nothing is known: the runs are too few, too short or too small to tell. It does not
  say that two settings are equal.

Where the paper shows a curve, or its number is not known here with certainty, the column says "no number"."""
Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="Folder of the runs.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="Folder of the kept runs.")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="Page with the markers. The plots go into a folder of its name."
    )
    args = parser.parse_args()
    try:
        write(load(), args.folder, args.results, args.page)
    except InputError as error:
        fail(error)


def write(
    modules: Iterable[ModuleType], folder: Path, results: Path, page: Path, say: Callable[[str], None] = print
) -> None:
    """Take over what is whole in `folder` into `results`; write the page's text between the markers, and the plots.

    Raises:
        InputError: If there is no page, or it lacks the markers.
    """
    modules = list(modules)
    for module in modules:
        say(take_over(module, folder, results))
    found = [(module, runs.kept(module.NAME, results)) for module in modules]
    plots = page.with_suffix("")
    pages.write(page, {"results": text(found, plots.name)})
    plots.mkdir(exist_ok=True)
    for module, rows in found:
        if rows:
            file = plots / f"{module.NAME}.png"
            module.plot(rows, file)
            stamp(file, digest(module, rows))
    say(f"{page}")


def digest(module: ModuleType, rows: Sequence[Row]) -> str:
    """Return what a plot was made of: its rows and the source of its `plot`, as a number."""
    made_of = json.dumps(list(rows), sort_keys=True) + inspect.getsource(module.plot)
    return hashlib.sha256(made_of.encode()).hexdigest()


def stamp(file: Path, made_of: str) -> None:
    """Write into a PNG what it was made of, for the test that no plot is older than its results."""
    with Image.open(file) as picture:
        picture.load()
        information = PngInfo()
        information.add_text(STAMP, made_of)
        picture.save(file, pnginfo=information, optimize=True)


def take_over(module: ModuleType, folder: Path, results: Path) -> str:
    """Keep the runs in `folder` if with those that are kept they are all of one size, or add to the size that is kept.

    Returns what was done, in words.
    """
    rows, kept = runs.read(module.NAME, folder), runs.kept(module.NAME, results)
    for quick in (True, False):
        wanted = [runs.key(part.settings) for part in module.parts(quick)]
        found = {runs.key(row["settings"]): row for row in [*rows, *kept]}  # a kept one goes before another of its kind
        mine = [found[settings] for settings in wanted if settings in found]
        there = [runs.key(row["settings"]) for row in kept]
        fresh = len([row for row in rows if runs.key(row["settings"]) in set(wanted) - set(there)])
        if fresh and (len(mine) == len(wanted) or set(there) & set(wanted)):
            runs.keep(results / f"{module.NAME}.jsonl", mine)
            return f"{module.NAME}: {fresh} runs taken over from {folder}, {len(mine)} of {len(wanted)} are kept"
    return (
        f"{module.NAME}: {len(rows)} runs in {folder}, none of them new to what is kept, or too few; results unchanged"
    )


def missing(module: ModuleType, rows: Sequence[Row]) -> int:
    """Return how many runs of the size of `rows` are not among them."""
    there = {runs.key(row["settings"]) for row in rows}
    sizes = ({runs.key(part.settings) for part in module.parts(quick)} for quick in (True, False))
    return min(len(wanted - there) for wanted in sizes)


def size(found: Iterable[tuple[ModuleType, Sequence[Row]]]) -> str:
    """Say at which size the experiments were run, and what they took."""
    sizes: dict[str, list[str]] = {"default": [], "full": []}
    minutes = 0.0
    for module, rows in found:
        default = {runs.key(part.settings) for part in module.parts(True)}
        if rows:
            sizes["default" if any(runs.key(row["settings"]) in default for row in rows) else "full"].append(
                module.NAME
            )
        minutes += sum(row["conditions"]["seconds"] for row in rows) / 60
    at = "; ".join(f"at the {name} size: {', '.join(names) or 'none'}" for name, names in sizes.items())
    return (
        f"Run {at}. The default size is far below the paper's. All runs together took {minutes:.0f} minutes of one "
        "thread, with other work on the machine."
    )


def text(found: Iterable[tuple[ModuleType, Sequence[Row]]], plots: str) -> str:
    """Return the text between the markers: a table of all claims, then each experiment with its table and its plot."""
    found = list(found)
    lines = [RULES, "", size(found), ""]
    claims = [claim for module, rows in found if rows for claim in module.claims(rows)]
    lines.append(
        pages.table(
            ["claim", "paper", "ours", "conditions", "verdict"],
            [(*claim[:4], f"**{claim.verdict}**") for claim in claims],
        )
    )
    for module, rows in found:
        lines += ["", f"## {module.TITLE}", ""]
        if not rows:
            lines.append(f"Not run yet: `python -m experiments {module.NAME}`.")
            continue
        note = getattr(module, "NOTE", "")
        lines += [note, ""] if note else []
        lines += [module.table(rows), "", f"![{module.TITLE}]({plots}/{module.NAME}.png)", "", measured(module, rows)]
        absent = missing(module, rows)
        if absent:
            lines += ["", f"{absent} more runs are not run yet: `python -m experiments {module.NAME} --missing`."]
    return "\n".join(lines)


def measured(module: ModuleType, rows: Sequence[Row]) -> str:
    """Return the conditions of the rows."""
    conditions = [row["conditions"] for row in rows]

    def all_of(key: str) -> str:
        return listed(condition.get(key) for condition in conditions)

    versions = ", ".join(f"{name} {all_of(name)}" for name in ("python", *runs.PACKAGES) if all_of(name))
    minutes = sum(condition["seconds"] for condition in conditions) / 60
    loads = [condition["load"] for condition in conditions if "load" in condition]
    busy = f" (of {len(loads)} runs the load was {min(loads):.1f} to {max(loads):.1f})" if loads else ""
    machine = f"{all_of('processor')}, {all_of('cpus')} cores{busy}"
    return (
        f"`python -m experiments {module.NAME}`: {len(rows)} runs, {minutes:.1f} minutes of one thread in all, on "
        f"{all_of('date')} on {machine}; {versions}; commit {all_of('commit')}."
    )
