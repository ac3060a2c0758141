"""Projected stochastic descent of many independent runs at once: theta is one tensor, an element a run.

The updates of the optimizers here are elementwise, so the runs do not touch each other. (ADOPT skips a first gradient
that is zero everywhere; none of the gradients here is zero.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from experiments.harness.runs import InputError
from experiments.paper.counter_examples import PROBLEMS

BLOCK = 3000  # steps whose gradients are drawn at once
POINTS = 40  # of a curve
BAND = (0.1, 0.9)  # the quantiles of the seeds that are drawn as a band
Make = Callable[[list[Tensor]], Optimizer]


def descend(make: Make, problem: str, steps: int, seeds: int, lr: float, decay: float, seed: int = 0) -> dict[str, Any]:
    """`steps` steps from theta = 0 with the learning rate lr / sqrt(1 + decay * t), projected onto [-1, 1].

    Returns:
        "step", "mean", "low", "high": the curve over the seeds, at steps that are evenly spaced on a logarithmic axis;
        "final": the mean of theta over the seeds and the last tenth of the steps, and "error", the half-width of its
        95 % interval over the seeds.

    Raises:
        InputError: If the problem is unknown, or a number is not positive.
    """
    if problem not in PROBLEMS:
        raise InputError(f"problem must be one of {', '.join(PROBLEMS)}, got {problem!r}")
    if steps < 10 or seeds < 2 or lr <= 0 or decay < 0:
        raise InputError(f"needs steps >= 10, seeds >= 2, lr > 0, decay >= 0; got {steps=}, {seeds=}, {lr=}, {decay=}")
    generator = torch.Generator().manual_seed(seed)
    theta = torch.zeros(seeds, dtype=torch.float64, requires_grad=True)
    position = theta.detach()  # the same memory
    optimizer = make([theta])
    (group,) = optimizer.param_groups
    marks = _marks(steps)
    curve: dict[str, list[Any]] = {"step": [], "mean": [], "low": [], "high": []}
    total = torch.zeros(seeds, dtype=torch.float64)
    tail = steps - steps // 10
    source = PROBLEMS[problem]
    block = BLOCK - BLOCK % source.epoch
    for start in range(0, steps, block):
        for t, gradient in enumerate(source.gradients(generator, block, seeds)[: steps - start], start):
            theta.grad = gradient
            group["lr"] = lr / (1 + decay * t) ** 0.5
            optimizer.step()
            position.clamp_(-1, 1)
            if t >= tail:
                total += position
            if t + 1 in marks:
                low, high = torch.quantile(position, torch.tensor(BAND, dtype=torch.float64)).tolist()
                for name, value in zip(curve, (t + 1, position.mean().item(), low, high), strict=True):
                    curve[name].append(round(value, 4))
    final = total / (steps - tail)
    error = 1.96 * final.std().item() / seeds**0.5
    return {**curve, "final": round(final.mean().item(), 4), "error": round(error, 4)}


def _marks(steps: int) -> Sequence[int]:
    return sorted({round(steps ** (i / (POINTS - 1))) for i in range(POINTS)})
