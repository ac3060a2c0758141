"""Write docs/evidence.md and its plots from the results.

python -m examples.paper.evidence
python -m examples.paper.evidence --folder runs/paper_full    # what has been run at full size takes the place

An experiment all of whose runs are in the folder, at one size, is kept in examples/paper/results/<experiment>.jsonl, a
run a line; the page is written from these files alone.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from examples.paper import experiments, parts
from examples.paper.claims import Claim
from examples.paper.command import fail
from examples.paper.parts import FOLDER, InputError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parents[1] / "docs" / "evidence.md"
BEGIN, END = "<!-- results: python -m examples.paper.evidence -->", "<!-- end of results -->"
Row = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the runs are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the finished ones are kept")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="the page with the markers; plots go into a folder beside"
    )
    args = parser.parse_args()
    try:
        write(experiments.load(), args.folder, args.results, args.page)
    except InputError as error:
        fail(error)


def write(
    modules: Iterable[ModuleType], folder: Path, results: Path, page: Path, say: Callable[[str], None] = print
) -> None:
    """Take over what is whole in `folder` into `results`; write the page's text between the markers, and the plots.

    Raises:
        InputError: there is no page, or it has not both markers.
    """
    modules = list(modules)
    for module in modules:
        say(take_over(module, folder, results))
    try:
        before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    except OSError as error:
        raise InputError(f"{page}: {error.strerror}") from None
    if not begin or END not in rest:
        raise InputError(f"{page} has not both markers, {BEGIN} and {END}")
    found = [(module, read(module, results)) for module in modules]
    plots = page.with_suffix("")
    body = text(found, plots.name)
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    plots.mkdir(exist_ok=True)
    for module, rows in found:
        if rows:
            module.plot(rows, plots / f"{module.NAME}.png")
    say(f"{page}")


def take_over(module: ModuleType, folder: Path, results: Path) -> str:
    """Keep the runs in `folder` if they are all those of one size; returns what was done, in words."""
    rows = parts.read(module.NAME, folder)
    there = {_key(row["settings"]) for row in rows}
    for quick in (True, False):
        wanted = {_key(part.settings) for part in module.parts(quick)}
        if wanted == there:
            results.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
            (results / f"{module.NAME}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            return f"{module.NAME}: {len(rows)} runs taken over from {folder}"
    return f"{module.NAME}: {len(rows)} runs in {folder}, not those of the default or the full size; results kept"


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True)


def read(module: ModuleType, results: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows that are kept of an experiment; none if there are none."""
    file = results / f"{module.NAME}.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def text(found: Iterable[tuple[ModuleType, Sequence[Row]]], plots: str) -> str:
    """What stands between the markers: all claims in one table, then each experiment with its table and its plot."""
    found = list(found)
    lines = ["| claim | paper | ours | conditions | verdict |", "| --- | --- | --- | --- | --- |"]
    lines += [_line(claim) for module, rows in found if rows for claim in module.claims(rows)]
    for module, rows in found:
        lines += ["", f"## {module.TITLE}", ""]
        if not rows:
            lines.append(f"Not run yet: `python -m examples.paper.{module.NAME}`.")
            continue
        note = getattr(module, "NOTE", "")
        lines += [note, ""] if note else []
        lines += [module.table(rows), "", f"![{module.TITLE}]({plots}/{module.NAME}.png)", "", measured(module, rows)]
    return "\n".join(lines)


def _line(claim: Claim) -> str:
    cells = (cell.replace("|", "\\|").replace("\n", " ") for cell in claim[:4])
    return f"| {' | '.join(cells)} | **{claim.verdict}** |"


def measured(module: ModuleType, rows: Sequence[Row]) -> str:
    """When, where and with what the rows were measured."""
    conditions = [row["conditions"] for row in rows]

    def all_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(condition[key]) for condition in conditions if key in condition))

    versions = ", ".join(f"{name} {all_of(name)}" for name in ("python", *parts.PACKAGES) if all_of(name))
    minutes = sum(condition["seconds"] for condition in conditions) / 60
    return (
        f"`python -m examples.paper.{module.NAME}`: {len(rows)} runs, {minutes:.1f} minutes of one thread in all, on "
        f"{all_of('date')} on {all_of('processor')}, {all_of('cpus')} cores; {versions}; commit {all_of('commit')}."
    )


if __name__ == "__main__":
    main()
