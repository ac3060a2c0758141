"""The plot of docs/defaults.md: what the warm-up does to the difference from AdamW, a panel a task."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

from experiments.defaults.tables import NOT_RUN, gather
from experiments.harness.paired import Difference, difference


def plot(protocol: ModuleType, rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw for each task the differences of ADOPT and of each exponent to the better AdamW, with their intervals."""
    found, names = gather(protocol, rows), ("adopt", *(protocol.adoptw(k) for k in protocol.EXPONENTS))
    labels = ["ADOPT", *(f"k = {k:g}" for k in protocol.EXPONENTS)]
    columns = 4
    high = math.ceil(len(protocol.TASKS) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.1 * high), layout="constrained")
    panels = figure.subplots(high, columns, squeeze=False).flatten()
    for axes, task in zip(panels, protocol.TASKS, strict=False):
        better = found.better_of(task, protocol.ADAMWS)
        axes.axvline(0, color="#9aa7b5", linewidth=1)
        axes.set_title(protocol.TASKS[task].title, fontsize=10)
        axes.set_yticks(range(len(names)), labels)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        drawn = False
        for place, name in enumerate(names):
            one = difference(found.at(task, name), found.at(task, better)) if better else Difference(0, math.inf, 0)
            if one.n == found.seeds[task] and math.isfinite(one.mean):
                colour = "#2c5f8a" if one.below else "#c0392b" if one.above else "#5c6670"
                axes.errorbar(one.mean, place, xerr=one.half, fmt="o", color=colour, markersize=4, capsize=2)
                drawn = True
        if not drawn:
            axes.set_xticks([])
            axes.text(0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center", color="#5c6670")
    for axes in panels[len(protocol.TASKS) :]:
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
