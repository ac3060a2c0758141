"""Reinforcement learning (MuJoCo): soft actor-critic of stable-baselines3 with Adam and with ADOPT.

python -m experiments reinforcement          # some thousand steps of small nets
python -m experiments reinforcement --full   # a million steps, stable-baselines3's nets: days, or a GPU

The optimizers of the actor and of the critics are replaced by `policy_kwargs`, all else is stable-baselines3's; the
temperature has an optimizer of its own there, which stays Adam. HalfCheetah-v5 and Ant-v5 of gymnasium, where the
paper has v4. Two pendulums stand beside them, which small nets can learn in minutes.
"""

import os
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from adopt_hf import ADOPT
from experiments.harness import pages
from experiments.harness.claims import Claim
from experiments.harness.paired import difference, interval, verdict
from experiments.harness.runs import InputError, Part

NAME = "reinforcement"
TITLE = "Reinforcement learning: SAC on MuJoCo"
NOTE = (
    "Return of the last policy without exploration noise, mean of the episodes; then mean over the seeds with its 95 % "
    "interval; higher is better. The environments are gymnasium's v5, where the paper has v4. Reproduced if the 95 % "
    "interval of the paired difference is above 0, contradicted if below. Of HalfCheetah and Ant the default's few "
    "thousand steps are the beginning of learning, and say that it runs rather than who wins; the pendulums, which are "
    "not in the paper, are small enough to be learnt in 5,000 steps, and have eight seeds. *Along the way* is the mean "
    "of all evaluations."
)
OPTIMIZERS = {"Adam": torch.optim.Adam, "ADOPT": ADOPT}
COLOURS = {"Adam": "#000000", "ADOPT": "#2c5f8a"}
TASKS = ("HalfCheetah-v5", "Ant-v5")
SEEDS = (0, 1, 2)
PENDULUMS = ("Pendulum-v1", "InvertedPendulum-v5")
PENDULUM_SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)
QUICK = {"steps": 4000, "hidden": 64, "batch": 64, "learning_starts": 500, "evaluations": 8, "episodes": 2}
FULL = {"steps": 1_000_000, "hidden": 256, "batch": 256, "learning_starts": 10_000, "evaluations": 100, "episodes": 10}
PENDULUM = {"steps": 5000, "hidden": 64, "batch": 64, "learning_starts": 500, "evaluations": 10, "episodes": 5}
Row = Mapping[str, Any]


def parts(quick: bool) -> list[Part]:
    """The runs of the paper's tasks, and those of the pendulums, which have one size."""
    wanted = [(task, name, seed) for task in TASKS for name in OPTIMIZERS for seed in SEEDS]
    pendulums = [(task, name, seed) for task in PENDULUMS for seed in PENDULUM_SEEDS for name in OPTIMIZERS]
    return [
        Part(
            NAME,
            f"{task}-{name}-{seed}",
            {"task": task, "optimizer": name, "seed": seed, "lr": 3e-4, **(QUICK if quick else FULL)},
        )
        for task, name, seed in wanted
    ] + [
        Part(NAME, f"{task}-{name}-{seed}", {"task": task, "optimizer": name, "seed": seed, "lr": 1e-3, **PENDULUM})
        for task, name, seed in pendulums
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
        InputError: If a task or an optimizer is unknown, a number is not positive, or stable-baselines3 is missing.
    """
    if task not in TASKS + PENDULUMS:
        raise InputError(f"task must be one of {', '.join(TASKS + PENDULUMS)}; got {task!r}")
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


def finals(rows: Iterable[Row], task: str, optimizer: str) -> dict[int, float]:
    """{seed: the last return}."""
    return {row["settings"]["seed"]: row["result"]["final"] for row in of(rows, task, optimizer)}


def along(rows: Iterable[Row], task: str, optimizer: str) -> dict[int, float]:
    """{seed: the mean of all evaluations}."""
    return {row["settings"]["seed"]: statistics.fmean(row["result"]["return"]) for row in of(rows, task, optimizer)}


def claims(rows: Iterable[Row]) -> list[Claim]:
    rows = list(rows)
    found = []
    for task in TASKS + PENDULUMS:
        returns = {name: finals(rows, task, name) for name in OPTIMIZERS}
        if not all(returns.values()):
            continue
        settings = of(rows, task, "ADOPT")[0]["settings"]
        less = difference(returns["ADOPT"], returns["Adam"])
        found.append(
            Claim(
                f"SAC's return on {task} is higher with ADOPT than with Adam",
                "figure of v4, no number; 1M steps" if task in TASKS else "not in the paper",
                ", ".join(f"{name} {interval(list(values.values()), '.0f')}" for name, values in returns.items())
                + f"; ADOPT less Adam {less.text('.0f')}",
                f"{settings['steps']:,} steps, nets of 2 x {settings['hidden']}, {len(returns['ADOPT'])} seeds",
                verdict(less._replace(mean=-less.mean)),
            )
        )
    return found


def table(rows: Iterable[Row]) -> str:
    """The last return and that along the way, of the tasks that have been run."""
    rows = list(rows)
    lines = []
    for task in TASKS + PENDULUMS:
        if of(rows, task, "ADOPT"):
            found = (list(values(rows, task, name).values()) for values in (finals, along) for name in OPTIMIZERS)
            lines.append([task, *(interval(values, ".0f") for values in found)])
    return pages.table(["return", "Adam", "ADOPT", "along the way, Adam", "ADOPT"], lines)


def plot(rows: Iterable[Row], path: Path) -> None:
    """Draw for every task the seeds as thin lines and their mean as a thick one."""
    rows = list(rows)
    run = [task for task in TASKS + PENDULUMS if of(rows, task, "ADOPT")]
    figure = Figure(figsize=(1 + 4.2 * len(run), 4), layout="constrained")
    for ax, task in zip(figure.subplots(1, len(run), squeeze=False)[0], run, strict=True):
        for name, colour in COLOURS.items():
            runs = [row["result"] for row in of(rows, task, name)]
            for one_ in runs:
                ax.plot(one_["step"], one_["return"], color=colour, alpha=0.3, linewidth=0.8)
            if runs:
                mean = [statistics.fmean(values) for values in zip(*(one_["return"] for one_ in runs), strict=True)]
                ax.plot(runs[0]["step"], mean, color=colour, linewidth=2.2, marker="o", markersize=3, label=name)
        ax.set(title=f"{task}, {len(runs)} seeds", xlabel="step")
        ax.grid(alpha=0.25)
    figure.axes[0].set_ylabel("return: seeds, and their mean")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=100)
