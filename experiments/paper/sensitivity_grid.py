"""The runs of `sensitivity` as numbers: the grids, the lines through a base, and what a single run scatters by.

A row is that of `parts.run`; a loss is the held-out one at the end, infinite where the run diverged.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from experiments.harness.paired import Pool, pool

OPTIMIZERS = ("ADOPT", "AdamW")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
BETA2S = (0.9, 0.95, 0.99, 0.999, 0.9999)
EPS = {"ADOPT": (1e-8, 1e-6, 1e-4, 1e-2), "AdamW": (1e-8,)}
CLIPS = ("none", 0.25, 1 / 3)
DEFAULT: dict[str, dict[str, Any]] = {
    "ADOPT": {"eps": 1e-6, "clip_exp": 0.25},
    "AdamW": {"eps": 1e-8, "clip_exp": "none"},
}
DEFAULTS = {"beta2": 0.9999, **DEFAULT["ADOPT"]}
BASE_RATE = 1e-2
BASES = {"ADOPT": (0.9999, 0.99), "AdamW": (0.95,)}  # beta2
SEEDS = (0, 1, 2)  # of the bases
# Chosen by seed 0 of the grid, (beta2, learning rate), and compared on seeds that had no part in the choice.
TUNED = {"ADOPT": (0.99, 1e-2), "AdamW": (0.95, 3e-3)}
DEFAULT_BETA2 = (0.9999, 1e-3)
OTHER_SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
MOMENTUM = 1e-2  # an eps above the root of v of nearly all elements
FIRST = 100  # steps in which the clip can do what it was made for
AXES = {"lr": "learning rate", "beta2": "beta2", "eps": "eps", "clip_exp": "clip exponent"}
Settings = dict[str, Any]
Rows = Sequence[dict[str, Any]]


def base(optimizer: str, beta2: float, lr: float = BASE_RATE) -> Settings:
    """Return settings that other runs differ from in one thing."""
    return {"optimizer": optimizer, "lr": lr, "beta2": beta2, **DEFAULT[optimizer], "seed": 0}


def tuned(optimizer: str) -> Settings:
    """Return the base of the optimizer's best cell."""
    return base(optimizer, *TUNED[optimizer])


def wanted() -> list[Settings]:
    """Return the settings of all runs, some of them more than once."""
    found: list[Settings] = []
    for optimizer in OPTIMIZERS:
        found += [base(optimizer, beta2, lr) for beta2 in BETA2S for lr in RATES]
        for beta2 in BASES[optimizer]:
            at = base(optimizer, beta2)
            found += [at | {"eps": eps} for eps in EPS[optimizer]]
            if optimizer == "ADOPT":
                found += [at | {"clip_exp": clip} for clip in CLIPS]
                found += [at | {"clip_exp": "none", "seed": seed} for seed in SEEDS]
            found += [at | {"seed": seed} for seed in SEEDS]
    duel = [*map(tuned, OPTIMIZERS), base("ADOPT", *DEFAULT_BETA2)]
    found += [tuned("ADOPT") | {"eps": MOMENTUM, "seed": seed} for seed in SEEDS]
    found += [at | {"seed": seed} for seed in OTHER_SEEDS for at in duel]
    return found


def losses(rows: Rows) -> list[tuple[Settings, float]]:
    """Return the settings and the loss of every run."""
    return [
        (row["settings"], math.inf if row["result"]["eval_loss"] is None else row["result"]["eval_loss"])
        for row in rows
    ]


def grid(rows: Rows, optimizer: str) -> dict[tuple[float, float], float]:
    """{(beta2, learning rate): loss} of the cells that have been run, with seed 0."""
    return {
        (s["beta2"], s["lr"]): loss
        for s, loss in losses(rows)
        if s["optimizer"] == optimizer and s["seed"] == 0 and all(s[k] == v for k, v in DEFAULT[optimizer].items())
    }


def line(rows: Rows, at: Settings, axis: str) -> dict[Any, float]:
    """{value of the axis: loss} of the runs that are `at` but for `axis`."""
    fixed = {name: value for name, value in at.items() if name != axis}
    return {s[axis]: loss for s, loss in losses(rows) if all(s[name] == value for name, value in fixed.items())}


def by_seed(rows: Rows, at: Settings, seeds: Iterable[int] | None = None) -> dict[int, float]:
    """{seed: loss} of the runs that are `at` but for the seed, of some seeds only or of all."""
    found = line(rows, at, "seed")
    return found if seeds is None else {seed: found[seed] for seed in seeds if seed in found}


def early(rows: Rows, at: Settings) -> dict[int, float]:
    """{seed: mean training loss of the first FIRST steps} of the runs that are `at` but for the seed."""
    fixed = {name: value for name, value in at.items() if name != "seed"}
    found = {}
    for row in rows:
        settings, result = row["settings"], row["result"]
        if all(settings[name] == value for name, value in fixed.items()):
            logged = zip(result["steps"], result["losses"], strict=True)
            of_first = [math.inf if loss is None else loss for step, loss in logged if step <= FIRST]
            found[settings["seed"]] = fmean(of_first)
    return found


def spread(found: dict[Any, float]) -> float:
    """Return the highest less the lowest loss; infinite where a run diverged."""
    return max(found.values()) - min(found.values())


def bases(rows: Rows, optimizer: str) -> list[Settings]:
    """Return the settings that eps, clip exponent and seed are changed from, those of them that have been run."""
    found = [base(optimizer, beta2) for beta2 in BASES[optimizer]]
    return [at for at in found if by_seed(rows, at)]


def scatter(rows: Rows) -> Pool:
    """Return what a single run scatters by: of the tuned settings or of the bases, whichever tells more."""
    duel = [by_seed(rows, at, OTHER_SEEDS) for at in (*map(tuned, OPTIMIZERS), base("ADOPT", *DEFAULT_BETA2))]
    at_bases = [by_seed(rows, at, SEEDS) for name in OPTIMIZERS for at in bases(rows, name)]
    return max(pool(duel), pool(at_bases), key=lambda found: found.df)


def best(rows: Rows, optimizer: str) -> tuple[float, float]:
    """Return (beta2, learning rate) of the best cell of the grid."""
    found = grid(rows, optimizer)
    return min(found, key=lambda cell: found[cell])


def sides(rows: Rows) -> tuple[list[float], list[float]]:
    """Return the beta2 and the learning rates of the grid."""
    cells = grid(rows, "ADOPT")
    return sorted({beta2 for beta2, _ in cells}), sorted({lr for _, lr in cells})


def lowest_by_beta2(rows: Rows, optimizer: str) -> dict[float, float]:
    """{beta2: loss at its best learning rate}."""
    found: dict[float, float] = {}
    for (beta2, _), loss in sorted(grid(rows, optimizer).items()):
        found[beta2] = min(loss, found.get(beta2, math.inf))
    return found


def axes(rows: Rows, optimizer: str) -> dict[str, dict[Any, float]]:
    """Return the losses along each axis, the axis of the largest spread first."""
    beta2, lr = best(rows, optimizer)
    through = base(optimizer, beta2, lr)
    lines = {axis: line(rows, through, axis) for axis in ("lr", "beta2")}
    if optimizer == "ADOPT":
        better = min(bases(rows, optimizer), key=lambda at: by_seed(rows, at)[0])
        lines |= {axis: line(rows, better, axis) for axis in ("eps", "clip_exp")}
    return dict(sorted(lines.items(), key=lambda item: -spread(item[1])))


def gain(found: dict[Any, float], axis: str) -> float:
    """Return the gain of leaving ADOPT's default along an axis. The learning rate has no default: its spread counts."""
    return spread(found) if axis == "lr" else found.get(DEFAULTS[axis], max(found.values())) - min(found.values())


def number(loss: float | None) -> str:
    """Three places; or 'diverged', and '-' for what has not been run."""
    if loss is None:
        return "-"
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"
