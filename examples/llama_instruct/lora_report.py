"""What the sweep of learning rates with LoRA came to: a table, sentences and a plot, from the kept rows."""

import json
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
PAGE, PLOT = DOCS / "fine_tuning.md", DOCS / "lora_sweep.png"
RESULTS = HERE / "results" / "lora_sweep.jsonl"
LARGEST_RATE = 0.01  # of those whose clipping the sentences tell: beyond it nothing trains well
STUDENT = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
}  # 97.5 %, by seeds
OPTIMIZERS = {
    "AdamW": ("--optim", "adamw_torch"),
    "ADOPT": ("--optim", "adopt", "--optim_args", "beta2_warmup=false"),
    "ADOPT, beta2_warmup": ("--optim", "adopt", "--optim_args", "beta2_warmup=true"),
}
COLOURS = {"AdamW": "#9aa7b5", "ADOPT": "#2c5f8a", "ADOPT, beta2_warmup": "#c0392b"}


def read(results: Path) -> list[dict[str, Any]]:
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line.strip()]


def spread(values: Iterable[float | None], form: str, scale: float = 1.0) -> str:
    """The mean of the seeds and half their range; 'diverged' if one of them is not finite."""
    found = list(values)
    if not found or None in found:
        return "diverged" if found else "-"
    scaled = [scale * value for value in found if value is not None]
    return f"{statistics.fmean(scaled):{form}} ± {(max(scaled) - min(scaled)) / 2:{form}}"


def of(rows: list[dict[str, Any]], name: str, lr: float) -> list[dict[str, Any]]:
    return [row for row in rows if row["optimizer"] == name and row["lr"] == lr]


def table(rows: list[dict[str, Any]]) -> str:
    head = " | ".join(f"lr {lr:g}" for lr in rates(rows))
    lines = [f"| held-out loss | {head} |", "| --- |" + " --- |" * len(rates(rows))]
    for name in OPTIMIZERS:
        losses = (spread((row["eval_loss"] for row in of(rows, name, lr)), ".3f") for lr in rates(rows))
        lines.append(f"| {name} | " + " | ".join(losses) + " |")
    lines += ["", f"| clipped elements, % | {head} |", "| --- |" + " --- |" * len(rates(rows))]
    for name in OPTIMIZERS:
        for key, label in (("clipped_first", "steps 1 to 100"), ("clipped", "all steps")):
            if name != "AdamW":
                shares = (spread((row[key] for row in of(rows, name, lr)), ".1f", 100) for lr in rates(rows))
                lines.append(f"| {name}, {label} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def text(rows: list[dict[str, Any]]) -> str:
    """The table, and what it was measured with."""
    last = rows[-1]
    versions = ", ".join(f"{package} {number}" for package, number in last["versions"].items())
    seeds = ", ".join(map(str, sorted({row["seed"] for row in rows})))
    return (
        f"{table(rows)}\n\nMean over seeds {seeds} and half their range; {last['steps']} steps of 8 records. Measured "
        f"on {last['date']} on {last['hardware']}, one thread a run; Python {last['python']}, {versions}."
    )


def words(rows: list[dict[str, Any]]) -> str:
    """What the table shows, in sentences; they need two seeds of each optimizer."""
    if any(len({row["seed"] for row in rows if row["optimizer"] == name}) < 2 for name in OPTIMIZERS):
        return "Fewer than two seeds of each optimizer: nothing is compared."
    best = {name: best_rate(rows, name) for name in OPTIMIZERS}
    losses = {name: {row["seed"]: row["eval_loss"] for row in of(rows, name, lr)} for name, lr in best.items()}
    ends = "; ".join(f"{name} {statistics.fmean(losses[name].values()):.3f}" for name in OPTIMIZERS)
    lines = [f"- **The best losses**, each at its best of {len(rates(rows))} learning rates: {ends}."]
    for name in OPTIMIZERS:
        if name != "AdamW":
            lines[0] += f" {paired(name, losses[name], losses['AdamW'])}"
    seeds = len(losses["AdamW"])
    lines[0] += f" {seeds} seeds are few. No optimizer was tuned beyond the rates of the table."
    there = [row["eval_loss"] for row in of(rows, "ADOPT", best["AdamW"])]
    own = statistics.fmean(losses["ADOPT"].values())
    cost = "diverges" if None in there else f"ends {statistics.fmean(there) - own:.2f} nats above its own best"
    lines.append(
        f"- **The best learning rate** is {best['AdamW']:g} for AdamW, {best['ADOPT, beta2_warmup']:g} for ADOPT with "
        f"the warm-up and {best['ADOPT']:g} without it. Without it ADOPT at AdamW's best rate {cost}."
    )
    shares = {
        (name, key): percent(row[key] for lr in rates(rows) if lr <= LARGEST_RATE for row in of(rows, name, lr))
        for name in OPTIMIZERS
        for key in ("clipped_first", "clipped")
        if name != "AdamW"
    }
    lines.append(
        f"- **The clipping** is what the warm-up removes. At the learning rates up to {LARGEST_RATE:g}, without it "
        f"{shares['ADOPT', 'clipped_first']} of the elements are clipped in the first 100 steps and "
        f"{shares['ADOPT', 'clipped']} in all steps; with it {shares['ADOPT, beta2_warmup', 'clipped_first']} and "
        f"{shares['ADOPT, beta2_warmup', 'clipped']}."
    )
    return "\n".join(lines)


def paired(name: str, mine: dict[int, float], theirs: dict[int, float]) -> str:
    """One sentence on the differences from AdamW, seed by seed."""
    differences = [mine[seed] - theirs[seed] for seed in sorted(mine)]
    behind = sum(difference > 0 for difference in differences)
    mean = statistics.fmean(differences)
    half = STUDENT[len(differences)] * statistics.stdev(differences) / math.sqrt(len(differences))
    each = ", ".join(f"{difference:+.3f}" for difference in differences)
    return (
        f"Seed by seed {name} is behind AdamW in {behind} of {len(differences)} ({each}; 95 % interval of the mean "
        f"{mean - half:+.3f} to {mean + half:+.3f})."
    )


def best_rate(rows: list[dict[str, Any]], name: str) -> float:
    """The learning rate with the lowest mean loss."""

    def mean(lr: float) -> float:
        losses = [row["eval_loss"] for row in of(rows, name, lr)]
        return math.inf if None in losses or not losses else statistics.fmean(losses)

    return min(rates(rows), key=mean)


def rates(rows: list[dict[str, Any]]) -> list[float]:
    return sorted({row["lr"] for row in rows})


def percent(values: Iterable[float]) -> str:
    """The range of shares, in whole per cent."""
    found = list(values)
    return f"{100 * min(found):.0f} to {100 * max(found):.0f} %"


def minutes() -> str:
    """How long all runs took together, each with one thread."""
    return f"{sum(row['seconds'] for row in read(RESULTS)) / 60:.0f}"


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


TEXTS: dict[str, Callable[[], str]] = {
    "sweep": lambda: text(read(RESULTS)),
    "sweep in words": lambda: words(read(RESULTS)),
    "sweep minutes": minutes,
}
