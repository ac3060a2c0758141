"""Made-up outcomes of runs for the tests of `adopt-hf compare`: curves that fall as those of a language model do."""

import math
import random
from typing import Any

from adopt_hf.commands.compare.plan import Plan, Run

PLAN = Plan(("train.py", "--max_steps", "400"), ("adopt", "adamw_torch_fused"), (3e-4, 1e-3, 3e-3), 3, False)
SHIFT = {"adopt": -0.03, "adamw_torch_fused": 0.0, "sgd": 0.5}


def finished(run: Run, shift: float = 0.0, steps: int = 400, noise: float = 0.01, **more: Any) -> dict[str, Any]:
    """Return what a run has done. The seed moves the loss of all optimizers alike; the best learning rate is 1e-3."""
    rng = random.Random(f"{run.name}")
    of_seed = random.Random(run.seed).gauss(0, 0.1)
    away = abs(math.log10(run.lr / 1e-3)) ** 2 * 0.4
    level = 3.0 + shift + of_seed + away + rng.gauss(0, noise)

    def loss(step: int, scatter: float) -> float:
        return level + 3.5 * math.exp(-step / (60 + 40 * away)) + rng.gauss(0, scatter)

    training: list[tuple[int, float | None]] = [(step, loss(step, 0.05)) for step in range(5, steps + 1, 5)]
    held_out: list[tuple[int, float | None]] = [(step, loss(step, 0.0)) for step in range(20, steps + 1, 20)]
    return {
        "status": "finished",
        "exit_code": 0,
        "seconds": 61.5,
        "shared": False,
        "steps": steps,
        "curves": {"eval_loss": held_out, "loss": training},
        "step_ms": 152.0 + rng.gauss(0, 2) + (2 if run.optim == "adopt" else 0),
        "peak_bytes": 640 * 2**20 + rng.randrange(2**20),
        "peak_of": "host",
        "processes": 1,
        "spikes": 0,
        **more,
    }


def failed(*lines: str, code: int = 1) -> dict[str, Any]:
    """Return what a run that has failed has left."""
    return {
        "status": "failed",
        "exit_code": code,
        "seconds": 3.5,
        "shared": False,
        "last_lines": list(lines),
        "trained": True,
    }


def all_finished(plan: Plan = PLAN, **more: Any) -> dict[Run, dict[str, Any]]:
    """Return the outcomes of a plan of which every run has finished."""
    return {run: finished(run, SHIFT.get(run.optim, 0.0), **more) for run in plan.runs()}
