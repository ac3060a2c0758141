"""Reinforcement learning (MuJoCo): soft actor-critic of stable-baselines3 with Adam and with ADOPT.

python -m examples.paper.reinforcement          # some thousand steps of small nets: three minutes on two cores
python -m examples.paper.reinforcement --full   # a million steps, stable-baselines3's nets: days, or a GPU

The optimizers of the actor and of the critics are replaced by `policy_kwargs`, all else is stable-baselines3's; the
temperature has an optimizer of its own there, which stays Adam. HalfCheetah-v5 and Ant-v5 of gymnasium, where the
paper had earlier versions.
"""

import os
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from adopt_hf import ADOPT
from examples.paper import command
from examples.paper.claims import Claim, against, interval
from examples.paper.parts import InputError, Part

NAME = "reinforcement"
TITLE = "Reinforcement learning: SAC on MuJoCo"
NOTE = (
    "Return of the last policy without exploration noise, mean of the episodes; then mean over the seeds with its 95 % "
    "interval; higher is better. Reproduced if the 95 % interval of the difference is above 0, contradicted if below. "
    "The default's few thousand steps are the beginning of learning, and say that it runs rather than who wins."
)
OPTIMIZERS = {"Adam": torch.optim.Adam, "ADOPT": ADOPT}
COLOURS = {"Adam": "#9aa7b5", "ADOPT": "#2c5f8a"}
TASKS = ("HalfCheetah-v5", "Ant-v5")
SEEDS = (0, 1, 2)
QUICK = {"steps": 4000, "hidden": 64, "batch": 64, "learning_starts": 500, "evaluations": 8, "episodes": 2}
FULL = {"steps": 1_000_000, "hidden": 256, "batch": 256, "learning_starts": 10_000, "evaluations": 100, "episodes": 10}
Row = Mapping[str, Any]


def parts(quick: bool) -> list[Part]:
    return [
        Part(
            NAME,
            f"{task}-{name}-{seed}",
            {"task": task, "optimizer": name, "seed": seed, "lr": 3e-4, **(QUICK if quick else FULL)},
        )
        for task in TASKS
        for name in OPTIMIZERS
        for seed in SEEDS
    ]


def one(
    task: str,
    optimizer: str,
    seed: int,
    lr: float,
    steps: int,
    hidden: int,
    batch: int,
    learning_starts: int,
    evaluations: int,
    episodes: int,
) -> dict[str, Any]:
    """Train one agent.

    Returns:
        "step" and "return": the curve of evaluations, on a second environment; "final": the last of them.

    Raises:
        InputError: an unknown task or optimizer, or numbers that are not positive; or stable-baselines3 is missing.
    """
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)}; got {task!r}")
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {optimizer!r}")
    if min(lr, steps, hidden, batch, learning_starts, evaluations, episodes) <= 0 or evaluations > steps:
        raise InputError(
            f"needs numbers above 0 and evaluations <= steps; got {lr=}, {steps=}, {hidden=}, {batch=}, "
            f"{learning_starts=}, {evaluations=}, {episodes=}"
        )
    os.environ.setdefault("MUJOCO_GL", "disable")  # no pictures
    try:
        import gymnasium
        import mujoco  # noqa: F401 - gymnasium would say so later
        from stable_baselines3 import SAC
        from stable_baselines3.common.evaluation import evaluate_policy
        from stable_baselines3.common.monitor import Monitor
    except ImportError as error:
        raise InputError(f"{error}: pip install 'adopt_hf[paper]'") from error

    environment, judge = (Monitor(gymnasium.make(task)) for _ in range(2))
    judge.reset(seed=1000 + seed)
    agent = SAC(
        "MlpPolicy",
        environment,
        learning_rate=lr,
        batch_size=batch,
        learning_starts=learning_starts,
        seed=seed,
        policy_kwargs={"net_arch": [hidden, hidden], "optimizer_class": OPTIMIZERS[optimizer]},
    )
    for part in (agent.actor, agent.critic):
        assert type(part.optimizer) is OPTIMIZERS[optimizer]
    curve: dict[str, list[Any]] = {"step": [], "return": []}
    every = steps // evaluations
    for evaluation in range(1, evaluations + 1):
        agent.learn(every, reset_num_timesteps=evaluation == 1)
        returned, _ = evaluate_policy(agent, judge, n_eval_episodes=episodes, deterministic=True)
        curve["step"].append(agent.num_timesteps)
        curve["return"].append(round(float(returned), 2))
    environment.close()
    judge.close()
    return {**curve, "final": curve["return"][-1]}


def of(rows: Iterable[Row], task: str, optimizer: str) -> list[Row]:
    return [r for r in rows if (r["settings"]["task"], r["settings"]["optimizer"]) == (task, optimizer)]


def finals(rows: Iterable[Row], task: str, optimizer: str) -> list[float]:
    return [row["result"]["final"] for row in of(rows, task, optimizer)]


def claims(rows: Iterable[Row]) -> list[Claim]:
    rows = list(rows)
    found = []
    for task in TASKS:
        returns = {name: finals(rows, task, name) for name in OPTIMIZERS}
        if not all(returns.values()):
            continue
        settings = of(rows, task, "ADOPT")[0]["settings"]
        found.append(
            Claim(
                f"SAC's return on {task} is higher with ADOPT than with Adam",
                "figure, no number; 1M steps",
                ", ".join(f"{name} {interval(values, '.0f')}" for name, values in returns.items()),
                f"{settings['steps']:,} steps, nets of 2 x {settings['hidden']}, {len(returns['ADOPT'])} seeds",
                against([-x for x in returns["ADOPT"]], [-x for x in returns["Adam"]]),
            )
        )
    return found


def table(rows: Iterable[Row]) -> str:
    rows = list(rows)
    lines = ["| return | Adam | ADOPT |", "| --- | --- | --- |"]
    for task in TASKS:
        cells = " | ".join(interval(finals(rows, task, name), ".0f") for name in OPTIMIZERS)
        lines.append(f"| {task} | {cells} |")
    return "\n".join(lines)


def plot(rows: Iterable[Row], path: Path) -> None:
    rows = list(rows)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for ax, task in zip(figure.subplots(1, len(TASKS)), TASKS, strict=True):
        for name, colour in COLOURS.items():
            runs = [row["result"] for row in of(rows, task, name)]
            for run in runs:
                ax.plot(run["step"], run["return"], color=colour, alpha=0.35, linewidth=0.8)
            if runs:
                mean = [statistics.fmean(values) for values in zip(*(run["return"] for run in runs), strict=True)]
                ax.plot(runs[0]["step"], mean, color=colour, label=name)
        ax.set(title=task, xlabel="step", ylabel="return")
        ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    command.main(sys.modules[__name__])


if __name__ == "__main__":
    main()
