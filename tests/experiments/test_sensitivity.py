"""experiments/paper/sensitivity.py: what it says of made-up grids, and the command at toy size."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from experiments.paper import sensitivity, sensitivity_grid
from tests.experiments.paper_command import call, shared_home

PARTS = sensitivity.parts(quick=True)


def made_up(**weights: float) -> list[dict[str, Any]]:
    """Rows of all parts. The loss is 3, plus each weight times the distance from a best value, in decades or so.

    ADOPT is best at learning rate 0.01, beta2 0.99, eps 1e-2 and clip exponent 1/4; AdamW at the same.
    """
    rows = []
    for part in PARTS:
        s = part.settings
        clips = {"none": 1.0, 0.25: 0.0, 1 / 3: 0.1}
        distances = {
            "lr": abs(math.log10(s["lr"] / 1e-2)),
            "beta2": abs(math.log10((1 - s["beta2"]) / 0.01)),
            "adam_beta2": abs(math.log10((1 - s["beta2"]) / 0.01)) if s["optimizer"] == "AdamW" else 0.0,
            "eps": abs(math.log10(s["eps"] / 1e-2)) if s["optimizer"] == "ADOPT" else 0.0,
            "clip_exp": clips[s["clip_exp"]] if s["optimizer"] == "ADOPT" else 0.0,
            "seed": s["seed"] / 2,
            "noise": random.Random(part.name).gauss(0, 1),  # what pairing by seed does not take out
        }
        loss = 3 + sum(weight * distances[name] for name, weight in weights.items())
        first = 6 + loss + (3 if s["clip_exp"] == "none" and s["optimizer"] == "ADOPT" else 0)
        curve = {"steps": [10, 100, s["max_steps"]], "losses": [first, first + 1, loss]}
        result = {"eval_loss": loss, **curve, "sequences": 8, "parameters": 1000}
        rows.append({"name": part.name, "settings": dict(s), "result": result})
    return rows


def test_parts_are_the_grids_the_lines_and_the_seeds() -> None:
    names = [part.name for part in PARTS]
    assert len(set(names)) == len(names)
    rows = made_up(lr=1)
    for name in sensitivity.OPTIMIZERS:
        assert len(sensitivity.grid(rows, name)) == len(sensitivity_grid.RATES) * len(sensitivity_grid.BETA2S)
        for base in sensitivity.bases(rows, name):
            assert set(sensitivity_grid.SEEDS) <= sensitivity.line(rows, base, "seed").keys()
        assert set(sensitivity_grid.OTHER_SEEDS) <= sensitivity.by_seed(rows, sensitivity.tuned(name)).keys()
    for base in sensitivity.bases(rows, "ADOPT"):
        assert set(sensitivity.line(rows, base, "eps")) == set(sensitivity_grid.EPS["ADOPT"])
        assert set(sensitivity.line(rows, base, "clip_exp")) == set(sensitivity_grid.CLIPS)


@pytest.mark.parametrize(
    ("weights", "first"),
    [
        ({"lr": 1, "beta2": 0.1, "noise": 0.01}, "learning rate"),
        ({"lr": 0.1, "beta2": 1, "noise": 0.01}, "beta2"),
        ({"lr": 0.1, "eps": 1, "noise": 0.01}, "eps"),
        ({"lr": 0.1, "clip_exp": -1, "noise": 0.01}, "clip exponent"),
    ],
)
def test_what_to_tune_first_is_the_axis_of_the_largest_gain(weights: dict[str, float], first: str) -> None:
    assert sensitivity.advice(made_up(**weights)).startswith(f"Tune first: {first}")


def test_a_default_that_is_the_best_is_left_alone() -> None:
    advice = sensitivity.advice(made_up(lr=0.1, clip_exp=1, seed=9))
    assert advice.startswith("Tune first: learning rate. Leave as it is: clip exponent, where other values are worse.")
    assert "clip exponent 1.000, learning rate 0.152" in advice
    assert "leaving the default gains clip exponent 0.000" in advice


def test_nothing_is_to_be_tuned_where_the_scatter_is_larger() -> None:
    assert sensitivity.advice(made_up(lr=0.01, noise=1)).startswith("Nothing is worth tuning. Around")


NOT = "not at this scale"
OF = {"beta2": 0, "best": 1, "base": 2, "duel": 3, "first": 4, "last": 5, "momentum": 6}  # the rows of the page


@pytest.mark.parametrize(
    ("weights", "verdicts"),
    [
        # AdamW suffers from beta2 and ADOPT does not; clipping helps. A seed that matters much changes nothing.
        (
            {"adam_beta2": 1, "clip_exp": 1, "noise": 0.01, "seed": 9},
            {"beta2": "reproduced", "duel": "reproduced", "first": "reproduced", "last": "reproduced", "best": NOT},
        ),
        # beta2 = 0.9999 is behind, at its best learning rate and at that of the base; clipping harms at the end.
        (
            {"beta2": 1, "adam_beta2": -1, "clip_exp": -1, "noise": 0.01},
            {"beta2": "contradicted", "best": "contradicted", "base": "contradicted", "last": "contradicted"},
        ),
        # The default that was "reproduced" by noise: behind, and no one can tell.
        ({"beta2": 0.001, "noise": 1}, {"beta2": NOT, "best": NOT, "base": NOT, "duel": NOT, "last": NOT}),
        ({"lr": 1, "beta2": 0.1, "noise": 0.01}, {"best": "contradicted", "duel": "reproduced", "momentum": NOT}),
        ({"eps": 1, "noise": 0.01}, {"momentum": "contradicted"}),
        ({"eps": -1, "noise": 0.01}, {"momentum": "reproduced"}),
    ],
)  # fmt: skip
def test_verdicts_follow_from_the_numbers(weights: dict[str, float], verdicts: dict[str, str]) -> None:
    found = sensitivity.claims(made_up(**weights))
    assert len(found) == len(OF)
    assert {name: found[OF[name]].verdict for name in verdicts} == verdicts


def test_the_first_steps_are_judged_by_the_first_steps() -> None:
    """They were judged by the last loss."""
    rows = made_up(clip_exp=-1, noise=0.01)
    claims = sensitivity.claims(rows)
    assert [claims[OF[name]].verdict for name in ("first", "last")] == ["reproduced", "contradicted"]


def test_the_seed_that_chose_a_cell_is_no_witness() -> None:
    rows = made_up(noise=0.01)
    for row in rows:
        if row["settings"]["seed"] == 0 and row["settings"]["optimizer"] == "ADOPT":
            row["result"]["eval_loss"] -= 1
    duel = sensitivity.claims(rows)[OF["duel"]]
    assert "(8 pairs)" in duel.ours
    assert duel.verdict == NOT


def test_a_best_at_the_edge_of_the_grid_is_said_to_be_none() -> None:
    rows = made_up(noise=0.01)
    assert "an edge" not in sensitivity.claims(rows)[OF["best"]].ours
    rows = [row for row in rows if row["settings"]["lr"] != 3e-4]
    assert "an edge of the grid" in sensitivity.claims(rows)[OF["best"]].ours


def test_what_has_not_been_run_is_no_number(tmp_path: Path) -> None:
    """Runs that came in later, such as the seeds of the tuned settings, may be missing."""
    rows = [r for r in made_up(lr=1, noise=0.01) if r["settings"]["seed"] == 0 and r["settings"]["lr"] != 3e-4]
    found = sensitivity.claims(rows)
    assert {claim.verdict for claim in found} == {NOT}
    assert "no pairs" in found[OF["duel"]].ours
    assert "without an interval" in found[OF["beta2"]].ours
    assert "| - |" not in sensitivity.table(rows)
    assert "| - |" in sensitivity.table([*rows, made_up()[0]])
    sensitivity.plot(rows, tmp_path / "plot.png")


def test_one_cell_is_enough_to_say_nothing(tmp_path: Path) -> None:
    """The parts that `--set lr=0.01 beta2=0.99 seed=0` leaves."""
    one = {"lr": 0.01, "beta2": 0.99, "seed": 0}
    rows = [row for row in made_up(noise=1) if one.items() <= row["settings"].items()]
    assert {claim.verdict for claim in sensitivity.claims(rows)} == {NOT}
    assert "AdamW - (beta2 0.95" in sensitivity.claims(rows)[OF["duel"]].ours
    assert "| beta2 0.99, lr 0.01 | eps | " in sensitivity.table(rows)
    sensitivity.plot(rows, tmp_path / "plot.png")


def test_what_diverged(tmp_path: Path) -> None:
    rows = made_up(lr=1, beta2=0.1, noise=0.01)
    for row in rows:
        if row["settings"]["lr"] == 0.03 and row["settings"]["optimizer"] == "ADOPT":
            row["result"]["eval_loss"] = None
    assert sensitivity.table(rows).count("diverged") >= len(sensitivity_grid.BETA2S)
    assert sensitivity.best(rows, "ADOPT") == (0.99, 0.01)
    assert "learning rate diverged" in sensitivity.advice(rows)
    sensitivity.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_command_at_toy_size(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One cell of the grid with its lines: eps and clip exponent, which must make different runs."""
    toy = ["--set", "max_steps=20", "warmup_steps=2", "n_embd=8", "block_size=8", "lr=0.01", "beta2=0.99", "seed=0"]
    result = call(
        "sensitivity",
        "--quick",
        "--workers",
        1,
        "--folder",
        tmp_path / "runs",
        *toy,
        home=shared_home(tmp_path_factory),
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(file.read_text()) for file in (tmp_path / "runs" / "sensitivity").glob("*.json")]
    assert len(rows) == 7
    assert sum(row["settings"]["optimizer"] == "AdamW" for row in rows) == 1
    losses = {(row["settings"]["eps"], row["settings"]["clip_exp"]): row["result"]["eval_loss"] for row in rows}
    assert len({losses[1e-6, "none"], losses[1e-6, 0.25], losses[1e-2, 0.25], losses[1e-8, "none"]}) == 4
    assert "| beta2 0.99, lr 0.01 | eps | 1e-08: " in result.stdout
    assert (tmp_path / "runs" / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
