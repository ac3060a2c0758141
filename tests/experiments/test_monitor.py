"""The cost of the monitor is computed from medians of the two kinds of steps, and the page has the kept result."""

import json
from pathlib import Path

import pytest

from experiments.monitor import cost


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
