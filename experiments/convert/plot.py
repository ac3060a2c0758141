"""The plot of docs/migrate.md: the losses after the checkpoint, and their difference from AdamW that goes on."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.convert.report import ARMS, BLOCK, Row, means
from experiments.harness import paired

GREY, COLOURS = "#5c6670", {"converted": "#2c5f8a", "empty": "#c0392b"}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw for each beta2 of AdamW the means over the seeds, in blocks of steps, with their 95 % intervals."""
    betas = list(dict.fromkeys(row["settings"]["beta2"] for row in rows))
    figure = Figure(figsize=(5.2 * len(betas), 5.6), layout="constrained")
    panels = figure.subplots(2, len(betas), squeeze=False, sharex=True, sharey="row")
    for column, beta2 in enumerate(betas):
        some = [row for row in rows if row["settings"]["beta2"] == beta2]
        above, below = panels[0][column], panels[1][column]
        above.set_title(f"after AdamW with beta2 = {beta2:g}", fontsize=10)
        _losses(above, some)
        _differences(below, some)
    panels[0][0].set_ylabel("training loss")
    panels[1][0].set_ylabel("less AdamW's loss of the same batch")
    panels[0][0].legend(fontsize=8)
    for axes in panels[1]:
        axes.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def blocks(rows: Sequence[Row]) -> list[int]:
    """Return the first step of each block, counted from the checkpoint."""
    return list(range(0, len(rows[0]["result"]["adamw"]) - BLOCK + 1, BLOCK))


def middles(rows: Sequence[Row]) -> list[float]:
    return [rows[0]["settings"]["saved"] + first + BLOCK / 2 for first in blocks(rows)]


def _losses(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the loss of each run, and the interval of AdamW's mean over the seeds."""
    x = middles(rows)
    adamws = [list(means(rows, "adamw", first, first + BLOCK).values()) for first in blocks(rows)]
    centre, half = [statistics.fmean(values) for values in adamws], [paired.half_width(values) for values in adamws]
    low, high = ([c + sign * h for c, h in zip(centre, half, strict=True)] for sign in (-1, 1))
    axes.fill_between(x, low, high, color=GREY, alpha=0.15, linewidth=0, label="95 % interval of AdamW's")
    axes.plot(x, centre, color=GREY, label="AdamW goes on")
    for arm, title in ARMS.items():
        found = [statistics.fmean(means(rows, arm, first, first + BLOCK).values()) for first in blocks(rows)]
        axes.plot(x, found, color=COLOURS[arm], linestyle="--" if arm == "converted" else "-", label=title)


def _differences(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the paired difference from AdamW with its interval."""
    axes.axhline(0, color=GREY, linewidth=1)
    for arm, colour in COLOURS.items():
        found = [
            paired.difference(means(rows, arm, first, first + BLOCK), means(rows, "adamw", first, first + BLOCK))
            for first in blocks(rows)
        ]
        half = [one.half for one in found]
        axes.errorbar(middles(rows), [one.mean for one in found], yerr=half, color=colour, fmt="o-", ms=3, capsize=2)
