"""GPT-2 where training is unstable: which runs diverge, AdamW's and ADOPT's, as the learning rate rises.

python -m experiments instability    # --full is the same

The paper says of a small batch that Adam's loss spikes and training fails where ADOPT's is stable. In `gpt2_curves`
AdamW is stable, so nothing is tested there. Here what keeps it so is taken away: the warm-up of the learning rate, its
decay and the clipping of the norm, and the rates go up to 1: at 0.01 to 0.03 no run of AdamW ends above its start.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from adopt_hf.commands.compare.spikes import WINDOW, smoothed
from experiments.harness import pages
from experiments.harness.claims import Claim, Verdict
from experiments.harness.runs import InputError, Part
from experiments.paper import gpt2

NAME = "instability"
TITLE = "GPT-2 where training is unstable"
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)
RATES = (0.03, 0.3, 1.0)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"optim": "adamw_torch", "adam_beta2": 0.95},
    "ADOPT": {"optim": "adopt", "optim_args": gpt2.PAPERS},
    "ADOPTW, beta2_warmup=1": {"optim": "adopt", "optim_args": "beta2_warmup=1"},
}
COLOURS = {"AdamW": "#000000", "ADOPT": "#2c5f8a", "ADOPTW, beta2_warmup=1": "#2f8f4e"}
SIZE = {"max_steps": 60, "n_embd": 64, "block_size": 64, "batch": 4}
LIMIT = 0.05
NOTE = (
    "No warm-up and no decay of the learning rate, no clipping of the norm, a small batch. A run *diverged* if its "
    f"held-out loss at the end is above its first training loss, and *rose* if a mean of {WINDOW} training losses is. "
    "The verdict is of the lowest learning rate at which half of AdamW's or of ADOPT's runs diverge: reproduced if of "
    f"the pairs of a seed in which one diverged it is AdamW's (sign test, two-sided, {100 * LIMIT:g} %), contradicted "
    "if it is ADOPT's, not at this scale if there is no such learning rate or both diverge alike. The rule was changed "
    "after the runs: it looked only at AdamW's runs, by which no learning rate decides here (not at this scale)."
)


def parts(quick: bool) -> list[Part]:
    """The runs; the same for both sizes."""
    return [
        Part(
            NAME,
            f"{optimizer.lower().replace(', beta2_', '-').replace('=', '-')}-lr{lr:g}-{seed}",
            {"optimizer": optimizer, "lr": lr, "seed": seed, **SIZE},
        )
        for seed in SEEDS
        for lr in RATES
        for optimizer in OPTIMIZERS
    ]


def one(optimizer: str, lr: float, seed: int, batch: int, **size: int) -> dict[str, Any]:
    """Train once; see gpt2.train for what comes back. `size` has the names of SIZE. Raises InputError."""
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(map(repr, OPTIMIZERS))}, got {optimizer!r}")
    options = gpt2.QUICK | size | OPTIMIZERS[optimizer] | {"learning_rate": lr, "seed": seed, "warmup_steps": 0}
    options |= {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": "{}", "max_grad_norm": 0.0}
    options |= {"per_device_train_batch_size": batch, "max_eval_blocks": 64}
    return gpt2.train(gpt2.STDLIB, options)


def diverged(rows: Sequence[dict[str, Any]], optimizer: str, lr: float) -> dict[int, bool]:
    """{seed: whether the run ended above its start}."""
    return {
        row["settings"]["seed"]: row["result"]["eval_loss"] is None
        or row["result"]["eval_loss"] > row["result"]["losses"][0]
        for row in _of(rows, optimizer, lr)
    }


def rose(rows: Sequence[dict[str, Any]], optimizer: str, lr: float) -> dict[int, bool]:
    """{seed: whether a mean of losses was above the first loss}."""
    return {
        row["settings"]["seed"]: max(smoothed(row["result"]["losses"])) > row["result"]["losses"][0]
        for row in _of(rows, optimizer, lr)
    }


def unstable(rows: Sequence[dict[str, Any]]) -> float | None:
    """Return the lowest learning rate at which at least half of AdamW's or of ADOPT's runs diverge."""
    for lr in sorted(RATES):
        for optimizer in ("AdamW", "ADOPT"):
            found = diverged(rows, optimizer, lr)
            if found and sum(found.values()) * 2 >= len(found):
                return lr
    return None


def compare(adam: dict[int, bool], adopt: dict[int, bool]) -> tuple[Verdict, str]:
    """Judge by the pairs of which one diverged, and say how many they are."""
    seeds = sorted(adam.keys() & adopt.keys())
    only_adam = sum(adam[seed] and not adopt[seed] for seed in seeds)
    only_adopt = sum(adopt[seed] and not adam[seed] for seed in seeds)
    text = f"of {len(seeds)} pairs only AdamW diverged in {only_adam}, only ADOPT in {only_adopt}"
    differ = only_adam + only_adopt
    more = max(only_adam, only_adopt)
    # The chance of so many of one kind, or more, if both are as likely.
    chance = 2 * sum(math.comb(differ, n) for n in range(more, differ + 1)) / 2**differ
    if chance >= LIMIT:
        return "not at this scale", text
    return "reproduced" if only_adam > only_adopt else "contradicted", text


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """The claim of stability, at the lowest learning rate where one of the two is unstable."""
    lr = unstable(rows)
    counts = "; ".join(
        f"{name} {', '.join(f'{sum(diverged(rows, name, at).values())} at {at:g}' for at in RATES)}"
        for name in OPTIMIZERS
        if _of(rows, name, RATES[0])
    )
    found: tuple[Verdict, str] = ("not at this scale", "both are stable at these learning rates")
    if lr is not None:
        found = compare(diverged(rows, "AdamW", lr), diverged(rows, "ADOPT", lr))
    at = "" if lr is None else f"at learning rate {lr:g} "
    return [
        Claim(
            "Where training fails by instability, it does with AdamW and not with ADOPT",
            "section 5, GPT-2 pretraining with a small batch (learning curves, no number in the text)",
            f"runs that diverged: {counts}; {at}{found[1]}",
            _conditions(rows),
            found[0],
        )
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the numbers of runs that diverged and rose, by learning rate."""
    lines = []
    for name in OPTIMIZERS:
        cells = []
        for lr in RATES:
            ends, highs = diverged(rows, name, lr), rose(rows, name, lr)
            cells.append(f"{sum(ends.values())} and {sum(highs.values())} of {len(ends)}" if ends else "-")
        lines.append([name, *cells])
    return f"{pages.table(['diverged, and rose', *(f'lr {lr:g}' for lr in RATES)], lines)}\n\n{_conditions(rows)}."


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the smoothed training losses of all seeds, a panel a learning rate."""
    figure = Figure(figsize=(14, 3.8), layout="constrained")
    for ax, lr in zip(figure.subplots(1, len(RATES)), RATES, strict=True):
        for name, colour in COLOURS.items():
            for index, row in enumerate(_of(rows, name, lr)):
                result = row["result"]
                curve = smoothed(result["losses"])
                steps = result["steps"][len(result["steps"]) - len(curve) :]
                ax.plot(steps, curve, color=colour, linewidth=0.9, label=None if index else name)
                if index == 0 and name == "AdamW":
                    ax.axhline(result["losses"][0], color="black", linewidth=0.7, linestyle=":")
                    ax.text(steps[-1], result["losses"][0], "start", ha="right", va="bottom", fontsize=8)
        ax.set(title=f"learning rate {lr:g}", xlabel="step", yscale="log")
        ax.grid(alpha=0.25, which="both")
    figure.axes[0].set_ylabel(f"training loss, mean of {WINDOW}")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=90)


def _of(rows: Sequence[dict[str, Any]], optimizer: str, lr: float) -> list[dict[str, Any]]:
    return [row for row in rows if (row["settings"]["optimizer"], row["settings"]["lr"]) == (optimizer, lr)]


def _conditions(rows: Sequence[dict[str, Any]]) -> str:
    result, settings = rows[0]["result"], rows[0]["settings"]
    seeds = len({row["settings"]["seed"] for row in rows})
    return (
        f"GPT-2 of {result['parameters']:,} parameters, {settings['max_steps']} steps of {settings['batch']} sequences "
        f"of {settings['block_size']}, {seeds} seeds"
    )
