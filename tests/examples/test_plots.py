"""The losses that a run's log holds, and their plot."""

from pathlib import Path

from examples.shared import plots

LOG = [
    {"step": 1, "loss": 3.0},
    {"step": 1, "eval_loss": 2.5},
    {"step": 2, "loss": 2.0},
    {"step": 2, "eval_loss": 1.5},
    {"step": 2, "eval_loss": 1.25},  # a resumed run evaluates its last step again
]


def test_a_curve_has_one_value_a_step() -> None:
    assert plots.curve(LOG, "loss") == {1: 3.0, 2: 2.0}
    assert plots.curve(LOG, "eval_loss") == {1: 2.5, 2: 1.25}
    assert plots.curve(LOG, "accuracy") == {}


def test_a_plot_is_a_png(tmp_path: Path) -> None:
    for name, log in (("both", LOG), ("training only", LOG[:1]), ("nothing", [])):
        plots.plot(log, tmp_path / f"{name}.png", name, of="on the responses")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
