"""ADOPT with atan2 instead of the bound of its divisor and its clip: one number less, and no division.

u = 4/pi * atan2(g, sqrt(v)) is g / sqrt(v) where that is small but for the factor, and never above 2 (Everett et al.,
2024, arXiv 2407.05872, did so to Adam). Element by element, with decoupled weight decay, as `adopt_hf.ADOPTW`.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from experiments.paper.tensorwise import TensorwiseOptimizer


class Atan2ADOPT(TensorwiseOptimizer):
    """See the module.

    Args:
        params: parameters with dense gradients, or param groups.
        lr: learning rate, >= 0.
        betas: (beta1, beta2), each in [0, 1).
        weight_decay: decoupled, >= 0.
        beta2_warmup: the exponent k in beta2_t = min(beta2, 1 - (t+1)**-k), in (0, 1].

    Raises:
        ValueError: If a hyperparameter is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        weight_decay: float = 0.0,
        beta2_warmup: float = 1.0,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas) or not 0 < beta2_warmup <= 1:
            raise ValueError(
                "needs lr >= 0, weight_decay >= 0, betas in [0, 1) and beta2_warmup in (0, 1]; got "
                f"{lr=}, {weight_decay=}, {betas=}, {beta2_warmup=}"
            )
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "beta2_warmup": beta2_warmup}
        super().__init__(params, defaults)

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
        m, v, t = state["m"], state["v"], state["t"]
        beta1, beta2 = group["betas"]
        beta2 = min(beta2, 1 - (t + 1) ** -group["beta2_warmup"])
        new = v == 0  # never observed: the first gradient moves nothing
        if t:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        u = torch.atan2(g, v.sqrt()).mul_(4 / math.pi).masked_fill_(new, 0.0)
        m.lerp_(u, 1 - beta1)
        p.sub_(m, alpha=group["lr"])
        v.copy_(torch.where(new, g * g, torch.lerp(v, g * g, 1 - beta2)))
        state["t"] = t + 1
