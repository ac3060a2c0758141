"""The claim of the algorithm: it converges for any beta2, where Adam does not (section 5.1 of the paper).

Minimise f(theta) = theta on [-1, 1] with stochastic gradients k^2 with probability 1/k and -k otherwise, of mean 1.
The optimum is -1. Where beta2 is small Adam's normalised steps average to the wrong sign. So do ADOPT's while the clip
t^(1/4) still cuts off the rare gradients (up to t = k^4 for the smallest beta2); then it turns round.
"""

import pytest
import torch

from adopt_hf import ADOPT

pytestmark = pytest.mark.everyday
K, STEPS, RUNS = 10, 30_000, 64


def final_means(cls: type[torch.optim.Optimizer], *betas2: float) -> list[float]:
    """Mean theta of RUNS independent runs (one vector) with lr = 0.1/sqrt(1 + 0.1 t), for a group of each beta2."""
    generator = torch.Generator().manual_seed(0)
    thetas = [torch.zeros(RUNS, dtype=torch.float64, requires_grad=True) for _ in betas2]
    optimizer = cls([{"params": [p], "betas": (0.9, beta2)} for p, beta2 in zip(thetas, betas2, strict=True)], lr=0.1)
    for step in range(STEPS):
        rare = torch.rand(RUNS, generator=generator, dtype=torch.float64) < 1 / K
        gradient = torch.where(rare, float(K**2), -float(K)).double()
        for theta, group in zip(thetas, optimizer.param_groups, strict=True):
            theta.grad = gradient
            group["lr"] = 0.1 / (1 + 0.1 * step) ** 0.5
        optimizer.step()
        with torch.no_grad():
            torch._foreach_clamp_min_(thetas, -1)
            torch._foreach_clamp_max_(thetas, 1)
    return [theta.detach().mean().item() for theta in thetas]


def test_adopt_converges_for_every_beta2() -> None:
    means = final_means(ADOPT, 0.1, 0.5, 0.9, 0.99, 0.9999)
    assert max(means) < -0.9, means


def test_adam_does_not() -> None:
    means = final_means(torch.optim.Adam, 0.1, 0.5, 0.9)
    assert min(means) > 0, means
