"""The sentences on the sweep of learning rates with LoRA. experiments/lora/sweep.py makes the rows."""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from experiments.harness import paired, runs
from experiments.lora import report as lora_report
from experiments.lora.report import OPTIMIZERS, RESULTS, best_rate, of, rates

Rows = list[dict[str, Any]]
NAMES = {"AdamW": "AdamW", "ADOPT": "ADOPT without the warm-up", "ADOPT, beta2_warmup": "ADOPT with the warm-up"}
LARGEST_RATE = 0.01  # of those whose clipping the sentences tell: beyond it nothing trains well


def words(rows: Rows) -> str:
    """Return three sentences on losses, learning rates and clipping."""
    best = {name: best_rate(rows, name) for name in OPTIMIZERS}
    losses = {name: {row["seed"]: row["eval_loss"] for row in of(rows, name, lr)} for name, lr in best.items()}
    ends = ", ".join(f"{NAMES[name]} {statistics.fmean(losses[name].values()):.3f}" for name in OPTIMIZERS)
    compared = [compare(NAMES[name], losses[name], losses["AdamW"]) for name in OPTIMIZERS if name != "AdamW"]
    cost = cost_of_adamws_rate(rows)
    shares = {
        (name, key): percent(row[key] for lr in rates(rows) if lr <= LARGEST_RATE for row in of(rows, name, lr))
        for name in ("ADOPT", "ADOPT, beta2_warmup")
        for key in ("clipped_first", "clipped")
    }
    return "\n".join(
        (
            f"- **The best losses**, each at its best of {len(rates(rows))} learning rates, seeds in pairs: {ends}. "
            f"{' '.join(compared)} {len(losses['AdamW'])} seeds are few, and no optimizer was tuned beyond the rates "
            "of the table.",
            f"- **The best learning rate** is {best['AdamW']:g} for AdamW, {best['ADOPT, beta2_warmup']:g} for ADOPT "
            f"with the warm-up and {best['ADOPT']:g} without it. Without it ADOPT at AdamW's best rate ends {cost:.2f} "
            "nats above its own best.",
            f"- **The clipping** is what the warm-up removes. At the learning rates up to {LARGEST_RATE:g}, without it "
            f"{shares['ADOPT', 'clipped_first']} of the elements are clipped in the first 100 steps and "
            f"{shares['ADOPT', 'clipped']} in all steps; with it {shares['ADOPT, beta2_warmup', 'clipped_first']} and "
            f"{shares['ADOPT, beta2_warmup', 'clipped']}.",
        )
    )


def cost_of_adamws_rate(rows: Rows) -> float:
    """Return by how much ADOPT without the warm-up is worse at AdamW's best learning rate than at its own."""
    own, theirs = (
        statistics.fmean(row["eval_loss"] for row in of(rows, "ADOPT", best_rate(rows, name)))
        for name in ("ADOPT", "AdamW")
    )
    return theirs - own


def compare(name: str, mine: dict[int, float], theirs: dict[int, float]) -> str:
    """Return one sentence on the differences from AdamW, seed by seed."""
    differences = [mine[seed] - theirs[seed] for seed in sorted(mine)]
    found = paired.difference(mine, theirs)
    each = ", ".join(f"{difference:+.3f}" for difference in differences)
    verdict = "is above" if found.above else "is below" if found.below else "holds"
    behind = sum(difference > 0 for difference in differences)
    return (
        f"{name} is behind AdamW in {behind} of {found.n} seeds ({each}); the "
        f"95 % interval of the mean, {found.mean - found.half:+.3f} to {found.mean + found.half:+.3f}, {verdict} 0."
    )


def percent(values: Iterable[float]) -> str:
    """Return the range of shares, in whole per cent."""
    found = list(values)
    return f"{100 * min(found):.0f} to {100 * max(found):.0f} %"


def minutes() -> str:
    """Return the minutes that all runs took together, each with one thread."""
    return f"{sum(row['seconds'] for row in runs.lines(RESULTS)) / 60:.0f}"


TEXTS: dict[str, Callable[[], str]] = {
    "sweep": lambda: lora_report.text(runs.lines(RESULTS)),
    "sweep in words": lambda: words(runs.lines(RESULTS)),
    "sweep minutes": minutes,
    "what AdamW's rate costs LoRA": lambda: f"{cost_of_adamws_rate(runs.lines(RESULTS)):.2f}",
}
