"""Ablation (figure 3): ADOPT without the decorrelation and without the reordering, on the toy problem; both are needed.

python -m experiments ablation           # half a minute on two cores
python -m experiments ablation --full    # ten times the steps
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from experiments.harness import pages
from experiments.harness.claims import Claim, Verdict
from experiments.harness.runs import InputError, Part
from experiments.paper.descent import descend
from experiments.paper.toy import Row, cell, converges, failed
from experiments.paper.variants import Variant

NAME = "ablation"
TITLE = "Ablation (figure 3)"
NOTE = (
    "The toy problem with k = 10; rules as for it. Without clipping: *both changes* is ADOPT, *neither* is Adam. A "
    "change is needed (reproduced) if a β2 fails without it, and all reach -1 with both."
)
BETA2 = (0.1, 0.5, 0.9, 0.99, 0.999)
VARIANTS = {  # decorrelate, reorder
    "neither": (False, False),
    "no decorrelation": (False, True),
    "no reordering": (True, False),
    "both changes": (True, True),
}
COLOURS = {"neither": "#666666", "no decorrelation": "#c08a2b", "no reordering": "#c0392b", "both changes": "#2c5f8a"}


def parts(quick: bool) -> list[Part]:
    common = {"problem": "k=10", "steps": 30_000 if quick else 300_000, "seeds": 256, "lr": 0.1, "decay": 0.1}
    return [
        Part(NAME, f"{variant}-{beta2}".replace(" ", "-"), {"variant": variant, "beta2": beta2, **common})
        for variant in VARIANTS
        for beta2 in BETA2
    ]


def one(variant: str, beta2: float, problem: str, steps: int, seeds: int, lr: float, decay: float) -> dict[str, Any]:
    """Run one variant on a problem, and return the result of `descend`.

    Raises:
        InputError: If the variant is unknown.
    """
    if variant not in VARIANTS:
        raise InputError(f"variant must be one of {'; '.join(VARIANTS)}; got {variant!r}")
    decorrelate, reorder = VARIANTS[variant]

    def make(params: list[Tensor]) -> Variant:
        return Variant(params, betas=(0.9, beta2), decorrelate=decorrelate, reorder=reorder)

    return descend(make, problem, steps, seeds, lr, decay)


def of(rows: Iterable[Row], variant: str) -> dict[float, Row]:
    """Return the rows of a variant, by beta2."""
    found = {row["settings"]["beta2"]: row for row in rows if row["settings"]["variant"] == variant}
    return dict(sorted(found.items()))


def claims(rows: Iterable[Row]) -> list[Claim]:
    rows = list(rows)
    both = of(rows, "both changes")
    found = []
    for variant, change in (("no decorrelation", "decorrelation"), ("no reordering", "reordering")):
        without = of(rows, variant)
        needed = converges(both) == "reproduced" and any(map(failed, without.values()))
        verdict: Verdict = "reproduced" if needed else "contradicted"
        if not needed and converges(both) == "not at this scale":
            verdict = "not at this scale"
        ours = ", ".join(f"{cell(row)} (β2 {beta2:g})" for beta2, row in without.items())
        settings = both[min(both)]["settings"]
        conditions = f"k = 10, θ after {settings['steps']:,} steps without it, {settings['seeds']} seeds"
        found.append(Claim(f"The {change} is needed", "figure 3, no number", ours, conditions, verdict))
    return found


def table(rows: Iterable[Row]) -> str:
    rows = list(rows)
    lines = []
    for variant in VARIANTS:
        found = of(rows, variant)
        lines.append([variant, *(cell(found[beta2]) if beta2 in found else "-" for beta2 in BETA2)])
    table = pages.table(["", *(f"β2 = {beta2:g}" for beta2 in BETA2)], lines)
    return table.replace("|  |", "| |", 1)  # as the page has had it


def plot(rows: Iterable[Row], path: Path) -> None:
    rows = list(rows)
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for ax, beta2 in zip(figure.subplots(1, len(BETA2), sharey=True), BETA2, strict=True):
        for variant, colour in COLOURS.items():
            row = of(rows, variant).get(beta2)
            if row:
                curve = row["result"]
                ax.plot(curve["step"], curve["mean"], color=colour, label=variant)
                ax.fill_between(curve["step"], curve["low"], curve["high"], color=colour, alpha=0.1, linewidth=0)
        ax.set(xscale="log", xlabel="step", ylim=(-1.05, 1.05), title=f"β2 = {beta2:g}")
        ax.axhline(-1, color="black", linewidth=0.6, linestyle=":")
        if beta2 == BETA2[0]:
            ax.set_ylabel("θ")
            handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=90)
