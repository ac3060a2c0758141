"""AdaShift (Zhou et al., ICLR 2019, arXiv 1810.00143, Algorithm 1), which the paper compares with on MNIST.

With g_t the gradient of step t, n the length of the window, and phi over a block, here a parameter tensor:

    m_t     = sum_{i=0}^{n-1} beta1^i g_{t-i} / sum_{i=0}^{n-1} beta1^i
    v_t     = beta2 v_{t-1} + (1 - beta2) phi(g_{t-n}^2)
    theta_t = theta_{t-1} - lr m_t / (sqrt(v_t / (1 - beta2^(t-n))) + eps)

The first n steps fill the window and move nothing. phi is the maximum over the block ("max-AdaShift"), or nothing.
eps is not in the paper's algorithm; its authors' code has it.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from experiments.paper.tensorwise import TensorwiseOptimizer

PHI = ("max", "none")


class AdaShift(TensorwiseOptimizer):
    """AdaShift.

    Args:
        params: parameters or param groups, with dense gradients.
        lr: learning rate, >= 0.
        betas: (beta1, beta2), each in [0, 1).
        n: gradients in the window, at least 1; as many copies of the parameters are kept.
        eps: >= 0, added to the root of v.
        phi: "max", one v for a parameter tensor, or "none", one for every element.

    State of a parameter: `window`, the last n gradients (n, *shape), `seen`, how many there have been, and
    `exp_avg_sq`, 0-d or of the parameter's shape.

    Raises:
        ValueError: If a hyperparameter is outside its range.
        RuntimeError: If a gradient is sparse.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        n: int = 10,
        eps: float = 1e-10,
        phi: str = "max",
    ) -> None:
        if lr < 0 or eps < 0:
            raise ValueError(f"lr and eps must not be negative, got {lr} and {eps}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1), got {betas}")
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if phi not in PHI:
            raise ValueError(f"phi must be one of {', '.join(PHI)}, got {phi!r}")
        super().__init__(params, {"lr": lr, "betas": betas, "n": n, "eps": eps, "phi": phi})

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        if g.is_sparse:
            raise RuntimeError("AdaShift does not take sparse gradients")
        (beta1, beta2), n, state = group["betas"], group["n"], self.state[p]
        if not state:
            state["window"] = torch.zeros((n, *p.shape), dtype=p.dtype, device=p.device)
            state["seen"] = 0
            of = torch.zeros((), dtype=p.dtype, device=p.device) if group["phi"] == "max" else p
            state["exp_avg_sq"] = torch.zeros_like(of)
        window, v, slot = state["window"], state["exp_avg_sq"], state["seen"] % n
        state["seen"] += 1
        if state["seen"] <= n:
            window[slot] = g
            return
        squared = window[slot].square()
        v.mul_(beta2).add_(squared.max() if group["phi"] == "max" else squared, alpha=1 - beta2)
        window[slot] = g
        # Of slot j, `age` steps ago; the weights sum to one.
        ages = [(slot - j) % n for j in range(n)]
        total = sum(beta1**age for age in ages)
        weights = torch.tensor([beta1**age / total for age in ages], dtype=p.dtype, device=p.device)
        m = torch.tensordot(weights, window, dims=1)
        correction = 1 - beta2 ** (state["seen"] - n)
        p.sub_(group["lr"] * m / (v.sqrt() / math.sqrt(correction) + group["eps"]))
