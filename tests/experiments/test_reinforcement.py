"""SAC on MuJoCo: the command at toy size, and the optimizer that is really used."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stable_baselines3", reason="stable-baselines3 is not installed")
pytest.importorskip("mujoco", reason="mujoco is not installed")

from adopt_hf import ADOPT
from experiments.harness.runs import InputError
from experiments.paper import reinforcement
from tests.experiments.test_paper import call, stamps

TINY = {"steps": 40, "hidden": 4, "batch": 8, "learning_starts": 10, "evaluations": 2, "episodes": 1}


def test_the_optimizer_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped: list[type] = []

    class Counted(ADOPT):
        def step(self, closure: Any = None) -> Any:
            stepped.append(type(self))
            return super().step(closure)

    monkeypatch.setitem(reinforcement.OPTIMIZERS, "ADOPT", Counted)
    settings: dict[str, Any] = {"task": "HalfCheetah-v5", "seed": 0, "lr": 3e-4, **TINY}
    adopt = reinforcement.one(optimizer="ADOPT", **settings)
    assert len(stepped) > 2 * 25  # actor and critics, after the 10 steps and those that warm up
    assert adopt["step"] == [20, 40]
    assert adopt["final"] == adopt["return"][-1]
    assert reinforcement.one(optimizer="ADOPT", **settings) == adopt
    assert reinforcement.one(optimizer="Adam", **settings) != adopt


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "Hopper-v5"}, "task must be one of HalfCheetah-v5, Ant-v5, Pendulum-v1, InvertedPendulum-v5; got"),
        ({"optimizer": "SGD"}, "optimizer must be one of Adam, ADOPT; got 'SGD'"),
        ({"evaluations": 50}, "evaluations <= steps"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    settings = {"task": "Ant-v5", "optimizer": "Adam", "seed": 0, "lr": 3e-4, **TINY, **wrong}
    with pytest.raises(InputError, match=message):
        reinforcement.one(**settings)


@pytest.mark.parametrize(("less", "verdict"), [(5.0, "reproduced"), (-5.0, "contradicted"), (0.0, "not at this scale")])
def test_higher_is_better_in_pairs(less: float, verdict: str, tmp_path: Path) -> None:
    """A seed changes both a hundred times as much as they differ."""
    rows = []
    for part in reinforcement.parts(True):
        s = part.settings
        final = 500.0 * s["seed"] + (s["optimizer"] == "ADOPT") * (less + s["seed"] % 2 - 0.5)
        result = {"step": [1, 2], "return": [0.0, final], "final": final}
        rows.append({"settings": dict(s), "result": result})
    pendulums = reinforcement.claims(rows)[2:]
    assert [claim.verdict for claim in pendulums] == [verdict] * 2
    assert all("(8 pairs)" in claim.ours for claim in pendulums)
    reinforcement.plot(rows, tmp_path / "all.png")
    some = [row for row in rows if row["settings"]["task"] in reinforcement.TASKS]
    assert len(reinforcement.claims(some)) == 2
    assert "Pendulum" not in reinforcement.table(some)
    reinforcement.plot(some, tmp_path / "some.png")


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    sizes = [f"{name}={value}" for name, value in TINY.items()]
    done = call("reinforcement", "--folder", tmp_path, "--workers", "1", "--set", "seed=0", *sizes)
    assert done.returncode == 0, done.stderr
    assert "| Ant-v5 |" in done.stdout
    runs = stamps(tmp_path)
    assert len(runs) == len(reinforcement.TASKS + reinforcement.PENDULUMS) * len(reinforcement.OPTIMIZERS)
    assert "| InvertedPendulum-v5 |" in done.stdout
    assert all(len(json.loads(text)["result"]["return"]) == 2 for _, text in runs.values())
    assert (tmp_path / "reinforcement.png").read_bytes().startswith(b"\x89PNG")
