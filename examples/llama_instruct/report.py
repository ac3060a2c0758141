"""What a run shows when it is over: its losses, as a line and as a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn
from transformers.trainer_callback import TrainerState

COLOURS = {"loss": ("#9aa7b5", "training"), "eval_loss": ("#c0392b", "held out")}


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)


def losses(log_history: list[dict[str, Any]], key: str) -> dict[int, float]:
    """The loss by step; of two at one step the later."""
    return {entry["step"]: entry[key] for entry in log_history if key in entry}


def plot(log_history: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the losses on the responses into the PNG `path`."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, (colour, label) in COLOURS.items():
        curve = losses(log_history, key)
        axes.plot(
            list(curve), list(curve.values()), color=colour, label=label, marker="o" if key == "eval_loss" else ""
        )
    axes.set(xlabel="step", ylabel="loss on the responses (nats per token)", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def summary(state: TrainerState, output_dir: Path) -> str:
    """A line with the held-out loss before and after, if there is one."""
    held_out = losses(state.log_history, "eval_loss")
    first, last = min(held_out, default=0), max(held_out, default=0)
    figures = f"held-out loss {held_out[first]:.4f} (step {first}) -> {held_out[last]:.4f}; " if held_out else ""
    return f"step {state.global_step}: {figures}model and curves (loss.png) in {output_dir}"
