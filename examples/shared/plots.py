"""The losses of a run from its log, and their plot."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

PALE, STRONG = "#9aa7b5", "#c0392b"


def curve(log_history: list[dict[str, Any]], key: str) -> dict[int, float]:
    """Return the values of `key` by step. Of two values at one step the later one counts."""
    return {entry["step"]: entry[key] for entry in log_history if key in entry}


def plot(log_history: list[dict[str, Any]], path: Path, title: str, of: str = "") -> None:
    """Draw the training loss and the held-out loss into the PNG file `path`.

    Args:
        log_history: The entries of the Trainer's log.
        path: The file.
        title: The title of the picture.
        of: What the loss is of, such as "on the responses".
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    train, held_out = curve(log_history, "loss"), curve(log_history, "eval_loss")
    axes.plot(list(train), list(train.values()), color=PALE, linewidth=1.2, label="training")
    label = f"held out (last: {held_out[max(held_out)]:.3f})" if held_out else "held out"
    axes.plot(
        list(held_out), list(held_out.values()), color=STRONG, linewidth=1.8, marker="o", markersize=4, label=label
    )
    axes.set(xlabel="step", ylabel=" ".join(f"loss {of} (nats per token)".split()), title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
