"""The share of the elements that ADOPT clips in a step."""

import statistics
from typing import Any

import torch
from transformers import TrainerCallback

import adopt_hf


class ClippedShare(TrainerCallback):
    """Note before each step the share of the elements at the clip: |g| / max(sqrt(v), eps) >= t**clip_exp.

    Only the elements count that the step moves: those with a second moment, in tensors that have made a step.
    `shares[i]` belongs to step i + 1. It is None if no element counts, as for other optimizers.
    """

    def __init__(self) -> None:
        self.shares: list[float | None] = []

    def on_pre_optimizer_step(self, *args: Any, optimizer: Any = None, **kwargs: Any) -> None:
        inner = getattr(optimizer, "optimizer", optimizer)
        self.shares.append(clipped_share(inner) if isinstance(inner, adopt_hf.ADOPT) else None)

    def mean(self, first: int = 0, last: int | None = None) -> float | None:
        """Return the mean of `shares[first:last]`."""
        found = [share for share in self.shares[first:last] if share is not None]
        return statistics.fmean(found) if found else None


@torch.no_grad()
def clipped_share(optimizer: adopt_hf.ADOPT) -> float | None:
    clipped = moved = 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p)
            if p.grad is None or not state or state["step"] == 0 or group["clip_exp"] is None:
                continue
            v, bound = state["exp_avg_sq"], float(state["step"]) ** group["clip_exp"]
            u = p.grad.abs() / v.sqrt().clamp(min=group["eps"])
            clipped += int(((u >= bound) & (v > 0)).sum())
            moved += int((v > 0).sum())
    return clipped / moved if moved else None
