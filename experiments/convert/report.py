"""The verdict on converted runs, by the rule in run.py, and the table of the page."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.harness import pages, paired
from experiments.harness.paired import Difference

FIRST, BLOCK, MARGIN = 10, 20, 0.05  # steps, steps, nats
ARMS = {"converted": "ADOPT, converted", "empty": "ADOPT, empty state"}
Row = dict[str, Any]


def jump(rows: Sequence[Row], arm: str) -> Difference:
    """Return the difference from AdamW over the first steps."""
    return paired.difference(means(rows, arm, 0, FIRST), means(rows, "adamw", 0, FIRST))


def means(rows: Sequence[Row], arm: str, first: int, last: int) -> dict[int, float]:
    """Return the mean loss of some steps, by seed."""
    return {row["settings"]["seed"]: statistics.fmean(row["result"][arm][first:last]) for row in rows}


def within(rows: Sequence[Row], arm: str) -> tuple[int, int]:
    """Return in how many blocks the mean over the seeds is within AdamW's interval, and how many there are."""
    steps = len(rows[0]["result"]["adamw"])
    starts = range(0, steps - BLOCK + 1, BLOCK)
    inside = 0
    for first in starts:
        ours, adamws = (list(means(rows, name, first, first + BLOCK).values()) for name in (arm, "adamw"))
        inside += abs(statistics.fmean(ours) - statistics.fmean(adamws)) <= paired.half_width(adamws)
    return inside, len(starts)


def verdict(rows: Sequence[Row], arm: str) -> str:
    """Return "goes on", "jumps" or "not shown"."""
    found, (inside, blocks) = jump(rows, arm), within(rows, arm)
    if abs(found.mean) + found.half <= MARGIN:
        return "goes on" if inside == blocks else "not shown"
    return "jumps" if found.above and found.mean > MARGIN else "not shown"


def words(rows: Sequence[Row]) -> str:
    """Return a sentence for each beta2: how far the two runs are from AdamW over all steps."""
    found = []
    for beta2 in dict.fromkeys(row["settings"]["beta2"] for row in rows):
        some = [row for row in rows if row["settings"]["beta2"] == beta2]
        converted, empty = (all_steps(some, arm).text() for arm in ARMS)
        steps = len(some[0]["result"]["adamw"])
        found.append(
            f"After AdamW with beta2 = {beta2:g} the loss of {steps} steps is {converted} nats from AdamW's with the "
            f"converted state, and {empty} with empty state."
        )
    return " ".join(found)


def all_steps(rows: Sequence[Row], arm: str) -> Difference:
    """Return the difference from AdamW over all steps."""
    steps = len(rows[0]["result"]["adamw"])
    return paired.difference(means(rows, arm, 0, steps), means(rows, "adamw", 0, steps))


def table(rows: Sequence[Row]) -> str:
    """Return the table, a row for each beta2 and run, with the conditions below."""
    head = [
        "AdamW's beta2",
        "goes on with",
        f"first {FIRST} steps, less AdamW's loss",
        "all steps",
        "largest, of a step",
        "blocks within AdamW's interval",
        "verdict",
    ]
    lines = []
    for beta2 in dict.fromkeys(row["settings"]["beta2"] for row in rows):
        some = [row for row in rows if row["settings"]["beta2"] == beta2]
        for arm, title in ARMS.items():
            steps = len(some[0]["result"]["adamw"])
            largest = max(
                statistics.fmean(row["result"][arm][i] - row["result"]["adamw"][i] for row in some)
                for i in range(steps)
            )
            inside, blocks = within(some, arm)
            cells = [f"{beta2:g}", title, jump(some, arm).text(), all_steps(some, arm).text(), f"{largest:+.3f}"]
            lines.append([*cells, f"{inside} of {blocks}", f"**{verdict(some, arm)}**"])
    last, settings = rows[-1]["conditions"], rows[-1]["settings"]
    note = (
        "Nats of training loss, means over seeds with their 95 % intervals, paired by seed and step. AdamW trained for "
        f"{settings['saved']} of {settings['steps']} steps, and each run went on to step {settings['ended']}. Measured "
        f"on {last['date']} on {last['processor']}, one thread, torch {last['torch']}, transformers "
        f"{last['transformers']}, commit {last['commit']}; `python -m experiments convert`."
    )
    return f"{pages.table(head, lines)}\n\n{note}"
