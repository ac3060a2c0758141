"""What the algorithm claims: it converges for any beta2, where Adam does not (section 5.1 of the paper).

Minimise f(theta) = theta on [-1, 1] with stochastic gradients k^2 with probability 1/k and -k otherwise, of mean 1.
The optimum is -1. Where beta2 is small Adam's normalised steps average to the wrong sign. So do ADOPT's while the clip
t^(1/4) still cuts off the rare gradients (up to t = k^4 for the smallest beta2); then it turns round.
"""

import pytest
import torch

from adopt_hf import ADOPT

K, STEPS, RUNS = 10, 30_000, 64


def final_mean(cls: type[torch.optim.Optimizer], beta2: float) -> float:
    """Mean theta of RUNS independent runs (one vector) with lr = 0.1/sqrt(1 + 0.1 t)."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros(RUNS, dtype=torch.float64, requires_grad=True)
    optimizer = cls([theta], lr=0.1, betas=(0.9, beta2))
    for step in range(STEPS):
        rare = torch.rand(RUNS, generator=generator, dtype=torch.float64) < 1 / K
        theta.grad = torch.where(rare, float(K**2), -float(K)).double()
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + 0.1 * step) ** 0.5
        optimizer.step()
        with torch.no_grad():
            theta.clamp_(-1, 1)
    return theta.detach().mean().item()


@pytest.mark.parametrize("beta2", [0.1, 0.5, 0.9, 0.99, 0.9999])
def test_adopt_converges_for_every_beta2(beta2: float) -> None:
    assert final_mean(ADOPT, beta2) < -0.9


@pytest.mark.parametrize("beta2", [0.1, 0.5, 0.9])
def test_adam_does_not(beta2: float) -> None:
    assert final_mean(torch.optim.Adam, beta2) > 0
