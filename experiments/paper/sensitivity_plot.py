"""The picture of `sensitivity`: both grids, and the spread of every axis."""

import math
from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper.sensitivity_grid import AXES, OPTIMIZERS, Rows, axes, grid, number, scatter, sides, spread


def plot(rows: Rows, path: Path) -> None:
    """Draw both grids as heat maps with one scale, and the spread along every axis."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    beta2s, rates = sides(rows)
    found = {name: grid(rows, name) for name in OPTIMIZERS}
    finite = sorted(loss for cells in found.values() for loss in cells.values() if math.isfinite(loss))
    # What diverged, or nearly, must not take the colours from the rest.
    low, high = finite[0], finite[len(finite) * 3 // 4]
    for axes_, (name, cells) in zip(panels, found.items(), strict=False):
        picture = axes_.imshow(
            [[cells.get((beta2, lr), math.nan) for lr in rates] for beta2 in beta2s],
            vmin=low,
            vmax=high,
            cmap="viridis_r",
            aspect="auto",
        )
        for y, beta2 in enumerate(beta2s):
            for x, lr in enumerate(rates):
                loss = cells.get((beta2, lr))
                dark = loss is not None and loss > (low + high) / 2
                axes_.text(x, y, number(loss), ha="center", va="center", color="white" if dark else "black")
        axes_.set(title=f"{name}: held-out loss", xlabel="learning rate", ylabel="beta2")
        axes_.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates])
        axes_.set_yticks(range(len(beta2s)), [f"{beta2:g}" for beta2 in beta2s])
    figure.colorbar(picture, ax=list(panels[:2]), extend="max")
    spreads = {name: axes(rows, name) for name in OPTIMIZERS}
    names = list(AXES)
    for offset, (name, colour) in enumerate((("ADOPT", "#2c5f8a"), ("AdamW", "#c08a2b"))):
        values = [spread(spreads[name][axis]) if axis in spreads[name] else 0.0 for axis in names]
        places = [i + 0.4 * offset for i in range(len(names))]
        lengths = [value if math.isfinite(value) else 0.0 for value in values]
        panels[2].barh(places, lengths, height=0.38, color=colour, label=name)
        for place, value in zip(places, values, strict=True):
            if math.isinf(value):
                panels[2].text(0, place, " diverged", va="center")
    panels[2].axvline(
        scatter(rows).spread(5), color="black", linewidth=1, linestyle="--", label="five runs by chance (95 %)"
    )
    panels[2].set_yticks([i + 0.2 for i in range(len(names))], [AXES[axis] for axis in names])
    panels[2].invert_yaxis()
    panels[2].set(title="spread around the best setting", xlabel="nats per token")
    handles, labels = panels[2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=len(labels), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
