"""The results: means, the best learning rate and its valley, steps to the reference's loss, and shared machines."""

import json
import math
import statistics
from typing import Any

import pytest

from adopt_hf.commands.compare import results
from adopt_hf.commands.compare.paired import half_width, t_quantile
from adopt_hf.commands.compare.plan import Plan, Run
from tests.support.comparisons import PLAN, all_finished, failed, finished

SAMPLE = finished(Run("adopt", 1e-3, 0))


def flat(loss: float | None, **more: Any) -> dict[str, Any]:
    """A run that falls from 9 to a loss in a straight line over 100 steps."""
    points = [(step, None if loss is None else 9 + (loss - 9) * step / 100) for step in range(10, 101, 10)]
    return {**SAMPLE, "curves": {"eval_loss": points, "loss": points}, "steps": 100, **more}


def of(found: dict[str, Any], optim: str, lr: float) -> dict[str, Any]:
    return next(one for one in found["settings"] if (one["optim"], one["lr"]) == (optim, lr))


def grid(losses: dict[str, list[list[float | None]]], lrs: tuple[float, ...], sweep: bool = False) -> dict[str, Any]:
    """Results of {optimizer: losses by learning rate and seed}."""
    plan = Plan(("x",), tuple(losses), lrs, len(next(iter(losses.values()))[0]), sweep)
    done = {
        Run(optim, lr, seed): flat(loss)
        for optim, by_lr in losses.items()
        for lr, by_seed in zip(lrs, by_lr, strict=True)
        for seed, loss in enumerate(by_seed)
    }
    return results.results(plan, done, 1)


def test_they_are_json_at_every_moment() -> None:
    done: dict[Run, dict[str, Any]] = {}
    for run in PLAN.runs():
        json.dumps(results.results(PLAN, done, 1), allow_nan=False)
        done[run] = failed("x") if run.seed == 2 else flat(None) if run.lr == 3e-3 else finished(run)
    found = results.results(PLAN, done, 1)
    json.dumps(found, allow_nan=False)
    assert (found["runs_planned"], found["runs_finished"], found["runs_failed"]) == (18, 12, 6)
    assert of(found, "adopt", 3e-3)["diverged"] == 2
    assert of(found, "adopt", 3e-3)["final"] == {"mean": None, "half": None, "n": 2}


def test_means_and_paired_differences() -> None:
    found = grid({"adopt": [[2.0, 3.0, 4.0]], "adamw_torch": [[2.5, 3.4, 4.6]]}, (1e-3,))
    setting = of(found, "adopt", 1e-3)
    assert setting["final"] == {"mean": 3.0, "half": pytest.approx(t_quantile(2) / math.sqrt(3)), "n": 3}
    row, verdict = found["differences"]
    pairs = [-0.5, -0.4, -0.6]
    expected = {"mean": pytest.approx(statistics.fmean(pairs)), "half": pytest.approx(half_width(pairs)), "n": 3}
    assert row["final"] == row["best"] == verdict["final"] == expected
    assert (verdict["confidence"], verdict["chosen_from"]) == (0.95, 1)


def test_the_verdicts_interval_covers_the_choice_of_learning_rates() -> None:
    found = grid({"adopt": [[2.0, 2.1], [3.0, 3.0]], "adamw_torch": [[5.0, 5.0], [4.0, 4.1]], "sgd": [[6, 6], [5, 5]]},
                 (1e-3, 1e-2))  # fmt: skip
    verdicts = [row for row in found["differences"] if row["is_verdict"]]
    assert [(row["optim"], row["lr"], row["reference_lr"]) for row in verdicts] == [
        ("adopt", 1e-3, 1e-2),
        ("sgd", 1e-2, 1e-2),
    ]
    assert all(row["chosen_from"] == 8 for row in verdicts)
    assert all(row["confidence"] == pytest.approx(1 - 0.05 / 8) for row in verdicts)


def test_the_best_learning_rate_is_one_whose_runs_have_all_ended_well() -> None:
    lrs = (1e-4, 1e-3, 1e-2)
    found = grid({"adopt": [[3.0, 3.0], [2.5, 2.5], [1.0, None]]}, lrs)
    assert found["best"][0]["lr"] == 1e-3
    plan = Plan(("x",), ("adopt",), lrs, 2, False)
    done = {run: flat(run.lr) for run in plan.runs()}
    done[Run("adopt", 1e-4, 1)] = failed("x")
    assert results.results(plan, done, 1)["best"][0]["lr"] == 1e-3


@pytest.mark.parametrize(
    ("losses", "lr", "edge", "low", "high", "open_ends"),
    [
        ([3.0, 2.5, 2.0, 2.5, 3.0], 1e-3, None, 1e-3 * 10**-0.04, 1e-3 * 10**0.04, (False, False)),
        ([2.0, 2.5, 3.0, 3.5, 4.0], 1e-4, "lowest", 1e-4, 1e-4 * 10**0.04, (True, False)),
        ([4.0, 3.0, 2.5, 2.01, 2.0], 1e-2, "highest", 10**-2.5306, 1e-2, (False, True)),
        ([2.01, 2.01, 2.0, 2.01, 2.01], 1e-3, None, 1e-4, 1e-2, (True, True)),
        ([3.0, 3.0, 2.0, None, None], 1e-3, None, 1e-3 * 10**-0.02, 1e-3, (False, False)),
    ],
)
def test_the_valley(
    losses: list[float | None], lr: float, edge: str | None, low: float, high: float, open_ends: tuple[bool, bool]
) -> None:
    """It ends where the loss, a straight line over log(lr) between two points, is 2 % above the best: at 2.04."""
    lrs = tuple(10.0**k for k in (-4, -3.5, -3, -2.5, -2))
    (best,) = grid({"adopt": [[loss] for loss in losses]}, lrs, sweep=True)["best"]
    assert best["lr"] == lrs[(-4, -3.5, -3, -2.5, -2).index(math.log10(lr))]
    assert (best["edge"], best["at_edge"]) == (edge, edge is not None)
    valley = best["valley"]
    assert valley["low"] == pytest.approx(low, rel=0.02)
    assert valley["high"] == pytest.approx(high, rel=0.02)
    assert valley["factor"] == pytest.approx(valley["high"] / valley["low"])
    assert (valley["open_below"], valley["open_above"]) == open_ends


def test_steps_to_the_references_loss_are_those_of_the_same_seed() -> None:
    """The lines fall from 9 to 3 or to 5 in 100 steps: 3 is at 100, and 5 at 66.7, so at the log of step 70."""
    found = grid({"adopt": [[3.0, 3.0, 6.0]], "adamw_torch": [[5.0, 3.0, 4.0]]}, (1e-3,))
    steps = {(run["optim"], run["seed"]): run["steps_to_reference"] for run in found["runs"]}
    assert [steps["adopt", seed] for seed in range(3)] == [70, 100, None]
    assert [steps["adamw_torch", seed] for seed in range(3)] == [100, 100, 100]
    setting = of(found, "adopt", 1e-3)
    assert (setting["steps_to_reference"], setting["reached"], setting["targets"]) == (85, 2, 3)


def test_without_a_held_out_loss_the_training_loss_is_judged() -> None:
    done = all_finished()
    for one in done.values():
        one["curves"]["eval_loss"] = []
    found = results.results(PLAN, done, 1)
    assert found["metric"] == "loss"
    row = found["runs"][0]
    last = [loss for _, loss in row["curves"]["loss"][-8:]]
    assert row["final"] == pytest.approx(statistics.fmean(last))


def test_times_of_runs_that_shared_the_machine_are_not_compared() -> None:
    alone = results.results(PLAN, all_finished(), 1)
    assert all(row["step_ms"]["n"] == 3 for row in alone["differences"])
    done = all_finished()
    done[PLAN.runs()[0]]["shared"] = True
    shared = results.results(PLAN, done, 2)
    assert shared["shared"]
    assert all(row["step_ms"] is None for row in shared["differences"])
    assert all(one["step_ms"]["n"] == 3 for one in shared["settings"])
