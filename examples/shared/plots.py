"""The plot of a run's losses."""

from pathlib import Path

from matplotlib.figure import Figure


def curve(log_history: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the entries of `log_history` that have `key`."""
    points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
    return [step for step, _ in points], [value for _, value in points]


def plot(log_history: list[dict[str, float]], path: Path, title: str) -> None:
    """Draw the training and the validation loss into the PNG `path`."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*curve(log_history, "loss"), color="#9aa7b5", linewidth=1.2, label="train")
    steps, losses = curve(log_history, "eval_loss")
    label = f"validation (last: {losses[-1]:.3f})" if losses else "validation"
    axes.plot(steps, losses, color="#c0392b", linewidth=1.8, marker="o", markersize=4, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
