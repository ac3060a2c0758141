"""The outcome of a run from its files: which trainer_state.json counts, the curves, and the last lines of a log."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from adopt_hf.commands.compare import outcome
from adopt_hf.commands.compare.folder import LOG, OUTPUT, STATE

HISTORY: list[dict[str, Any]] = [
    {"step": 5, "loss": 3.0, "learning_rate": 1e-3},
    {"step": 5, "eval_loss": 3.1},
    {"step": 10, "loss": math.nan},
    {"step": 10, "eval_loss": 2.9, "eval_runtime": 0.1},
    {"step": 10, "train_runtime": 1.0, "train_loss": 2.8},
]


def write_state(path: Path, step: int, history: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"global_step": step, "log_history": history}))


def test_the_latest_state_with_the_longest_history_counts(tmp_path: Path) -> None:
    assert outcome.trainer_state(tmp_path) is None
    write_state(tmp_path / OUTPUT / "checkpoint-5" / STATE, 5, HISTORY[:1] * 9)
    write_state(tmp_path / STATE, 10, HISTORY[:3])
    (tmp_path / OUTPUT / "checkpoint-11").mkdir()
    (tmp_path / OUTPUT / "checkpoint-11" / STATE).write_text('{"global_step": 11, "log_hi')
    found = outcome.trainer_state(tmp_path)
    assert found is not None
    assert (found["global_step"], len(found["log_history"])) == (10, 3)
    write_state(tmp_path / OUTPUT / STATE, 10, HISTORY)
    found = outcome.trainer_state(tmp_path)
    assert found is not None
    assert len(found["log_history"]) == 5


def test_a_finished_run(tmp_path: Path) -> None:
    write_state(tmp_path / OUTPUT / STATE, 10, HISTORY)
    seen = {"optim": "adopt", "step_ms": 20.0, "peak_bytes": 7, "peak_of": "host"}
    for pid, changes in ((1, {}), (2, {"step_ms": 30.0, "peak_bytes": 9}), (3, {"optim": None, "peak_bytes": 99})):
        one = {name: value for name, value in {**seen, **changes}.items() if value is not None}
        (tmp_path / f"seen-{pid}.json").write_text(json.dumps(one))
    found = outcome.finished(tmp_path)
    assert found == {
        "steps": 10,
        "curves": {"eval_loss": [(5, 3.1), (10, 2.9)], "loss": [(5, 3.0), (10, None)]},
        "step_ms": 30.0,
        "peak_bytes": 9,
        "peak_of": "host",
        "processes": 2,
        "spikes": None,
    }


@pytest.mark.parametrize("history", [[], [{"step": 10, "train_runtime": 1.0}]])
def test_a_state_without_a_loss_is_none(history: list[dict[str, Any]], tmp_path: Path) -> None:
    write_state(tmp_path / OUTPUT / STATE, 10, history)
    assert outcome.finished(tmp_path) is None


def test_a_training_loss_is_a_mean_of_a_tenth_and_a_held_out_one_is_not() -> None:
    points: outcome.Curve = [(step, float(step)) for step in range(1, 31)]
    smooth = outcome.smooth(points)
    assert smooth[0] == (3, 2.0)
    assert smooth[-1] == (30, 29.0)
    assert outcome.smooth(points[:5]) == points[:5]
    assert outcome.judged({"loss": points, "eval_loss": points}, "eval_loss") == points
    assert outcome.judged({"loss": points, "eval_loss": points}, "loss") == smooth
    broken: outcome.Curve = [*points[:-1], (30, None)]
    assert outcome.smooth(broken)[-2:] == [(29, 28.0), (30, None)]


def test_last_lines_are_those_that_a_terminal_shows(tmp_path: Path) -> None:
    assert outcome.last_lines(tmp_path) == []
    lines = [
        *(f"line {i}" for i in range(50)),
        "\r 10%|#  \r 90%|###",
        "",
        "\x1b[31mValueError: \xff bad\x1b[0m",
        "end",
    ]
    (tmp_path / LOG).write_bytes("\n".join(lines).encode("latin-1"))
    found = outcome.last_lines(tmp_path)
    assert len(found) == outcome.LAST_LINES
    assert found[-3:] == [" 90%|###", "[31mValueError: \ufffd bad[0m", "end"]
    assert "\x1b" not in "".join(found)
    assert outcome.reason(found) == "[31mValueError: \ufffd bad[0m"
    assert outcome.reason([]) == "it printed nothing"
    assert outcome.reason(["a", "b"]) == "b"
