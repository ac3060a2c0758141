"""The table and the plot of the sweep of learning rates with LoRA, from the kept rows."""

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.harness import pages, runs
from experiments.harness.machine import ROOT

PAGE, PLOT = ROOT / "docs" / "fine_tuning.md", ROOT / "docs" / "lora_sweep.png"
RESULTS = runs.RESULTS / "lora_sweep.jsonl"
OPTIMIZERS = {
    "AdamW": ("--optim", "adamw_torch"),
    "ADOPT": ("--optim", "adopt", "--optim_args", "beta2_warmup=false"),
    "ADOPT, beta2_warmup": ("--optim", "adopt", "--optim_args", "beta2_warmup=1.0"),
}
COLOURS = {"AdamW": "#9aa7b5", "ADOPT": "#2c5f8a", "ADOPT, beta2_warmup": "#c0392b"}


def spread(values: Iterable[float | None], form: str, scale: float = 1.0) -> str:
    """Return the mean of the seeds and half their range, or 'diverged' if one of them is not finite."""
    found = list(values)
    if not found or None in found:
        return "diverged" if found else "-"
    scaled = [scale * value for value in found if value is not None]
    return f"{statistics.fmean(scaled):{form}} ± {(max(scaled) - min(scaled)) / 2:{form}}"


def of(rows: list[dict[str, Any]], name: str, lr: float) -> list[dict[str, Any]]:
    return [row for row in rows if row["optimizer"] == name and row["lr"] == lr]


def table(rows: list[dict[str, Any]]) -> str:
    head = [f"lr {lr:g}" for lr in rates(rows)]
    losses = [
        (name, *(spread((row["eval_loss"] for row in of(rows, name, lr)), ".3f") for lr in rates(rows)))
        for name in OPTIMIZERS
    ]
    shares = [
        (f"{name}, {label}", *(spread((row[key] for row in of(rows, name, lr)), ".1f", 100) for lr in rates(rows)))
        for name in OPTIMIZERS
        if name != "AdamW"
        for key, label in (("clipped_first", "steps 1 to 100"), ("clipped", "all steps"))
    ]
    return f"{pages.table(['held-out loss', *head], losses)}\n\n{pages.table(['clipped elements, %', *head], shares)}"


def text(rows: list[dict[str, Any]]) -> str:
    """Return the table and the conditions of the measurement."""
    last = rows[-1]
    versions = ", ".join(f"{package} {number}" for package, number in last["versions"].items())
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    return (
        f"{table(rows)}\n\nMean over seeds {seeds} and half their range; {last['steps']} steps of 8 records. Measured "
        f"on {last['date']} on {last['hardware']}, one thread a run; Python {last['python']}, {versions}."
    )


def best_rate(rows: list[dict[str, Any]], name: str) -> float:
    """Return the learning rate with the lowest mean loss."""

    def mean(lr: float) -> float:
        losses = [row["eval_loss"] for row in of(rows, name, lr)]
        return math.inf if None in losses or not losses else statistics.fmean(losses)

    return min(rates(rows), key=mean)


def rates(rows: list[dict[str, Any]]) -> list[float]:
    return sorted({row["lr"] for row in rows})


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    losses, clipped = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        for axes, key, scale in ((losses, "eval_loss", 1), (clipped, "clipped_first", 100)):
            found = {lr: [row[key] for row in of(rows, name, lr)] for lr in rates(rows)}
            found = {lr: [scale * v for v in values] for lr, values in found.items() if values and None not in values}
            if found:
                axes.plot(
                    list(found), [statistics.fmean(v) for v in found.values()], color=colour, marker="o", label=name
                )
                axes.fill_between(
                    list(found),
                    [min(v) for v in found.values()],
                    [max(v) for v in found.values()],
                    color=colour,
                    alpha=0.2,
                )
    losses.set(xscale="log", xlabel="learning rate", ylabel="held-out loss (nats per token)")
    clipped.set(xscale="log", xlabel="learning rate", ylabel="clipped elements, steps 1 to 100, %")
    losses.legend(frameon=False)
    for axes in (losses, clipped):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=120)
