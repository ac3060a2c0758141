"""The last line of a run."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn
from transformers.trainer_callback import TrainerState

from examples.shared.launch import PICTURE
from examples.shared.plots import curve


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)


def summary(state: TrainerState, output_dir: Path) -> str:
    """Return a line with the held-out loss before and after training, if there is one."""
    held_out = curve(state.log_history, "eval_loss")
    first, last = min(held_out, default=0), max(held_out, default=0)
    figures = f"held-out loss {held_out[first]:.4f} (step {first}) -> {held_out[last]:.4f}; " if held_out else ""
    return f"step {state.global_step}: {figures}model and curves ({PICTURE}) in {output_dir}"
