"""Write docs/defaults.md and its plot, from the rows of experiments/defaults/protocol.py only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.defaults import decisions
from experiments.defaults.decisions import Comparison, Found
from experiments.defaults.plot import plot
from experiments.defaults.tables import NOT_RUN, clip, gather, once, scores, short, task_table
from experiments.harness import pages
from experiments.harness.paired import difference
from experiments.paper import evidence

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"
BLOCKS = ("defaults rule", "defaults results", "defaults short", "defaults clip")  # what the page must have


def texts(protocol: ModuleType, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The produced passages by their keys (experiments/harness/pages.py).

    Args:
        protocol: experiments.defaults.protocol, or a module with its tables.
    """
    found = gather(protocol, rows)
    return {
        "defaults rule": decisions.RULE,
        "defaults results": text(protocol, rows),
        "defaults short": short(protocol, found),
        "where ADOPTW is behind AdamW": behind(protocol, found),
        "defaults clip": clip(protocol, found),
    }


def write(protocol: ModuleType, rows: Sequence[Mapping[str, Any]], page: Path = PAGE) -> None:
    """Write the produced passages of `page`, and its plot.

    Raises:
        InputError: There is no page, or it lacks a marker.
    """
    pages.write(page, texts(protocol, rows), BLOCKS)
    plot(protocol, rows, page.with_suffix("") / "differences.png")


def text(protocol: ModuleType, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the rule decides, and a table for each task."""
    found = gather(protocol, rows)
    lines = verdicts(protocol, found)
    for name in protocol.TASKS:
        lines += ["", *task_table(protocol, found, name)]
    if rows:
        lines += ["", evidence.measured(protocol, rows)]
    return "\n".join(lines)


def verdicts(protocol: ModuleType, found: Found) -> list[str]:
    """Return the decisions of the rule, and the decisions that are open."""
    scored = scores(protocol, found)
    chosen = decisions.choose(scored)
    lines = []
    for k in dict.fromkeys((1.0, chosen)):
        comparisons = decisions.warmup(found, protocol.TASKS, protocol.adoptw(k), "adopt")
        run = [one for one in comparisons if one.outcome != NOT_RUN]
        worse = [f"{protocol.TASKS[one.task].title} ({one.basis})" for one in run if one.outcome == "worse"]
        better = sum(one.outcome == "better" for one in run)
        verdict = {True: "it stays the default", False: "it does not stay the default", None: "not decided yet"}
        lines.append(
            f"- **The warm-up with k = {k:g} against the paper's rule: {verdict[decisions.stays(comparisons)]}.** Of "
            f"{len(comparisons)} comparisons {len(run)} are run: better in {better}, worse in {len(worse)}"
            + (f" ({', '.join(worse)})" if worse else "")
            + f", level in {len(run) - better - len(worse)}."
            + "".join(dict.fromkeys(_repeated(protocol, one) for one in comparisons if one.again))
        )
    if any(one.open for one in scored):
        missing = {task for one in scored for task in one.missing}
        lines.append(
            f"- **The exponent: not decided yet**, so it stays 1. {len(protocol.TASKS) - len(missing)} of "
            f"{len(protocol.TASKS)} tasks are run for all of them; a k that has lost a task is out for good."
        )
    else:
        none = "" if any(one.admissible for one in scored) else " No k is admissible."
        lines.append(f"- **The exponent: k = {chosen:g}.**{none}")
    rows = []
    for one in scored:
        cells = [_titles(protocol, names) for names in (one.wins, one.level, one.losses)]
        cells.append(f"{len(one.missing)} of {len(protocol.TASKS)}")
        total = f"{one.sum:+.2f}" if len(one.missing) < len(protocol.TASKS) else "-"
        rows.append([f"k = {one.exponent:g}", *cells, total])
    head = ["ADOPTW against AdamW, at AdamW's rate", "wins", "level", "loses", "not run yet", "standardised sum"]
    return [*lines, "", pages.table(head, rows), "", once(protocol, found)]


def _titles(protocol: ModuleType, names: Sequence[str]) -> str:
    """Return the number of the tasks and their titles."""
    return f"{len(names)}: {'; '.join(protocol.TASKS[name].title for name in names)}" if names else "0"


def _repeated(protocol: ModuleType, one: Comparison) -> str:
    """Both differences of a comparison that was run again."""
    assert one.again is not None
    first, again = (f"{found.mean:+.4f} ± {found.half:.4f}" for found in (one.difference, one.again))
    return f" {protocol.TASKS[one.task].title} went against it, {first}; with other seeds it is {again}."


def behind(protocol: ModuleType, found: Found) -> str:
    """Name the tasks on which ADOPTW is behind the better AdamW by the interval, at AdamW's rate, and by how much."""
    name = protocol.adoptw(decisions.choose(scores(protocol, found)))
    pairs = {
        task.title: difference(found.at(task.name, name), found.at(task.name, better))
        for task in protocol.TASKS.values()
        if (better := found.better_of(task.name, protocol.ADAMWS)) and len(found.at(task.name, name)) == task.seeds
    }
    worse = [f"{title} {one.mean:+.3f} ± {one.half:.3f}" for title, one in pairs.items() if one.above]
    ahead = sum(one.below for one in pairs.values())
    return (
        f"of {len(pairs)} small tasks it is ahead of the better AdamW on {ahead}, and behind on {len(worse)}"
        + f" ({', '.join(worse)})" * bool(worse)
    )
