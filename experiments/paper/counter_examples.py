"""Problems on [-1, 1] that tell Adam and ADOPT apart: where their stochastic gradients come from.

All are linear, f(theta) = slope * theta, so the minimiser is the end of [-1, 1] that `minimiser` says.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

COMPONENTS = (1.9, -1.0, -1.0)  # of the reviewers' example: (1.9x, -x, -x), mean slope -1/30


@dataclass(frozen=True)
class Problem:
    """`gradients(generator, steps, seeds)` gives (steps, seeds), one column an independent run, float64.

    It is called block by block, with `steps` a multiple of `epoch`.
    """

    title: str
    minimiser: float
    gradients: Callable[[torch.Generator, int, int], Tensor]
    epoch: int = 1


def rare(k: int) -> Problem:
    """The paper's: k^2 with probability 1/k and -k otherwise, of mean k - (k - 1) = 1."""

    def gradients(generator: torch.Generator, steps: int, seeds: int) -> Tensor:
        large = torch.rand(steps, seeds, generator=generator) < 1 / k
        return torch.where(large, float(k**2), -float(k)).double()

    return Problem(f"k = {k}", -1.0, gradients)


def drawn() -> Problem:
    """The components of the finite sum drawn independently, with replacement: what the paper's theorems assume."""

    def gradients(generator: torch.Generator, steps: int, seeds: int) -> Tensor:
        which = torch.randint(len(COMPONENTS), (steps, seeds), generator=generator)
        return torch.tensor(COMPONENTS, dtype=torch.float64)[which]

    return Problem("1.9x, -x, -x drawn independently", 1.0, gradients)


def shuffled() -> Problem:
    """The components visited once an epoch in random order: a gradient then depends on those before it."""

    def gradients(generator: torch.Generator, steps: int, seeds: int) -> Tensor:
        epochs = steps // len(COMPONENTS)
        order = torch.rand(epochs, len(COMPONENTS), seeds, generator=generator).argsort(1)
        return torch.tensor(COMPONENTS, dtype=torch.float64)[order].reshape(-1, seeds)

    return Problem("1.9x, -x, -x shuffled every epoch", 1.0, gradients, epoch=len(COMPONENTS))


def minimiser(problem: str) -> float:
    """Return the minimiser of a problem by name: those of PROBLEMS, and k=20 and the like."""
    return -1.0 if problem.startswith("k=") else PROBLEMS[problem].minimiser


PROBLEMS = {"k=10": rare(10), "k=50": rare(50), "drawn": drawn(), "shuffled": shuffled()}
