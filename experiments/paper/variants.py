"""Adam, ADOPT, and the two half-way: ADOPT's two changes to Adam, each on its own."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from experiments.paper.tensorwise import TensorwiseOptimizer


class Variant(TensorwiseOptimizer):
    """Adam with neither of the two changes, ADOPT without clipping (Algorithm 1 of the paper) with both.

    Args:
        params: parameters with dense gradients.
        lr: learning rate, >= 0.
        betas: (beta1, beta2), each in [0, 1).
        eps: lower bound of sqrt(v), > 0. (torch's Adam adds it, which is the same where it is tiny.)
        decorrelate: divide by the second moment of the gradients before the current one. It begins with the first
            gradient's square, and the first step moves nothing; else it begins with zero, with Adam's correction.
        reorder: average the divided gradients; else divide the averaged gradient, with Adam's correction.

    Raises:
        ValueError: If a hyperparameter is outside its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        *,
        decorrelate: bool,
        reorder: bool,
    ) -> None:
        if lr < 0 or eps <= 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"needs lr >= 0, betas in [0, 1) and eps > 0; got {lr=}, {betas=}, {eps=}")
        self.decorrelate, self.reorder = decorrelate, reorder
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        lr, (beta1, beta2), eps, state = group["lr"], group["betas"], group["eps"], self.state[p]
        if not state:
            state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
            if self.decorrelate:
                state["v"] = g * g
                return
        state["t"] += 1
        m, v, t = state["m"], state["v"], state["t"]
        if not self.decorrelate:
            v.lerp_(g * g, 1 - beta2)
        divisor = (v if self.decorrelate else v / (1 - beta2**t)).sqrt().clamp_(min=eps)
        if self.reorder:
            m.lerp_(g / divisor, 1 - beta1)
            p.sub_(m, alpha=lr)
        else:
            m.lerp_(g, 1 - beta1)
            p.addcdiv_(m, divisor, value=-lr / (1 - beta1**t))
        if self.decorrelate:
            v.lerp_(g * g, 1 - beta2)
