"""The cost of the monitor is computed from medians of the two kinds of steps, and the page has the kept results."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments.harness import runs
from experiments.monitor import cost, figures


def test_shares_are_of_a_step_that_is_not_observed() -> None:
    row = {"ms": {"plain": 200.0, "observed": 300.0}}
    assert cost.shares(row) == {500: 0.001, 100: 0.005, 10: 0.05}


def test_the_kept_result_is_below_one_percent_by_default() -> None:
    row = json.loads(cost.RESULTS.read_text())
    assert cost.shares(row)[cost.INTERVALS[0]] < 0.01


@pytest.mark.slow
def test_both_kinds_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    assert cost.main(["--model", "gpt2-toy", "--length", "16", "--rounds", "3", "--out", str(out)]) == 0
    ms = json.loads(out.read_text())["ms"]
    assert 0 < ms["plain"] < ms["observed"]


def test_of_a_log_the_training_is_kept() -> None:
    history = [
        {"step": 1, "loss": 3.14159, "grad_norm": 1.0, "adopt/clipped": 0.123456, "adopt/nonfinite_v": 0.0},
        {"step": 1, "eval_loss": 3.0},
        {"step": 1, "train_loss": 3.0, "train_runtime": 1.0},
    ]
    assert figures.logged(history) == [{"step": 1, "loss": 3.142, "adopt/clipped": 0.1235, "adopt/nonfinite_v": 0.0}]


def test_the_picture_has_a_row_for_each_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "Figure", lambda **options: drawn.append(Figure(**options)) or drawn[-1])
    log = [{"step": step, **dict.fromkeys(figures.DRAWN, step / 10)} for step in (1, 2, 3)]
    figures.plot([{"recipe": name, "log": log} for name in figures.RECIPES], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [*figures.DRAWN, *figures.DRAWN]
    assert all(list(axes.lines[0].get_ydata()) == [0.1, 0.2, 0.3] for axes in drawn[0].axes)


def test_the_kept_logs_are_of_both_recipes_and_have_the_figures() -> None:
    rows = runs.lines(figures.RESULTS)
    assert [row["recipe"] for row in rows] == list(figures.RECIPES)
    assert all(set(figures.DRAWN) <= entry.keys() for row in rows for entry in row["log"])
    assert all(entry["adopt/nonfinite_v"] == 0 for row in rows for entry in row["log"])


@pytest.mark.slow
def test_a_recipe_is_trained_with_the_monitor(tmp_path: Path) -> None:
    results, plot = tmp_path / "runs.jsonl", tmp_path / "plot.png"
    options = ["--recipes", "gpt2_pretraining", "--steps", "4", "--folder", str(tmp_path / "runs")]
    assert figures.main([*options, "--results", str(results), "--plot", str(plot)]) == 0
    (row,) = runs.lines(results)
    assert [entry["step"] for entry in row["log"]] == [1, 2, 3, 4]
    assert all("adopt/clipped" in entry for entry in row["log"])
    assert plot.is_file()
