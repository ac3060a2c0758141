"""Flat parameters of ZeRO: one long tensor per process and param group, with a stretch of each tensor of the group.

ADOPT counts steps per tensor, and does not update a tensor without a gradient. A flat parameter shows neither the
tensors nor their gradients. A `Partition` describes both, so that a sharded run equals the run of one process.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Stretch(NamedTuple):
    """The elements `start` to `start + numel` of a flat parameter, which belong to tensor number `tensor`."""

    tensor: int
    start: int
    numel: int


class Span(NamedTuple):
    """Elements of a flat parameter that are updated together."""

    start: int
    numel: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.narrow(0, self.start, self.numel)


@dataclass(frozen=True)
class Partition:
    """The tensors that a flat parameter holds.

    Args:
        tensors: Number of tensors that share the flat parameter, over all processes. All processes number them alike.
        stretches: Stretches of this process, by ascending start. Elements outside all stretches are padding.
        arrived: Callable that returns, for each tensor, whether any rank has received a gradient since the last call,
            or None if no rank has ever received one. All ranks get the same answer. Without a gradient the flat
            gradient may hold an old one. For None the values of the flat gradient decide.
        total: Function that sums an int64 or float64 CPU tensor in place over the processes that share the tensors.
        number: Number that differs between flat parameters, and between processes with different parts. Default: 0.
        names: Names of the tensors in the model. Default: none.
        is_cut: Whether some of them are parts of tensors, whose other parts are in processes that `total` does not
            reach. Default: False.
    """

    tensors: int
    stretches: Sequence[Stretch]
    arrived: Callable[[], Sequence[bool | None]]
    total: Callable[[Tensor], None]
    number: int = 0
    names: Sequence[str] = ()
    is_cut: bool = False

    def steps(self, state: dict[str, Any]) -> list[float]:
        """Return the step count of each tensor, from the state of the flat parameter."""
        counts = state.get("tensor_steps")
        if counts is None:
            return [float(state["step"])] * self.tensors
        if len(counts) != self.tensors:
            raise ValueError(
                f"the saved state counts the steps of {len(counts)} tensors, and the flat parameter holds "
                f"{self.tensors}: this is the state of another model"
            )
        return [float(count) for count in counts]

    def active(self, grad: Tensor, steps: Sequence[float]) -> list[bool]:
        """Return for each tensor whether this step updates it.

        A tensor is updated if it has a gradient, which must not be all zero at t = 0.

        Args:
            grad: Flat gradient.
            steps: Step count of each tensor.
        """
        arrived = self.arrived()
        unsure = [there is None or (there and t == 0) for t, there in zip(steps, arrived, strict=True)]
        seen = self._nonzero(grad, unsure) if any(unsure) else [False] * self.tensors
        return [nonzero if doubt else bool(there) for there, doubt, nonzero in zip(arrived, unsure, seen, strict=True)]

    def _nonzero(self, grad: Tensor, asked: Sequence[bool]) -> list[bool]:
        """Return for each tensor in `asked` whether its whole gradient has a non-zero element. NaN is not zero.

        A step waits for the device of a flat gradient only here.
        """
        look = [s for s in self.stretches if asked[s.tensor] and s.numel]
        nonzero = torch.zeros(self.tensors, dtype=torch.int64, device="cpu")
        if look:
            counts = torch.stack([torch.count_nonzero(grad.narrow(0, s.start, s.numel)) for s in look]).cpu()
            nonzero.index_add_(0, torch.tensor([s.tensor for s in look], dtype=torch.int64, device="cpu"), counts)
        self.total(nonzero)
        return [count > 0 for count in nonzero.tolist()]

    def spans(self, active: Sequence[bool], steps: Sequence[float]) -> dict[float, list[Span]]:
        """Return the spans to update, by step count. Neighbours with equal counts are one span."""
        spans: dict[float, list[Span]] = defaultdict(list)
        for s in self.stretches:
            if not active[s.tensor] or not s.numel:
                continue
            together = spans[steps[s.tensor]]
            if together and together[-1].start + together[-1].numel == s.start:
                together[-1] = Span(together[-1].start, together[-1].numel + s.numel)
            else:
                together.append(Span(s.start, s.numel))
        return dict(spans)


def counted(active: Sequence[bool], steps: Sequence[float]) -> dict[str, Any]:
    """Return the entries of the state after the step: the largest count, and all counts if they differ."""
    after = [t + 1 if updated else t for t, updated in zip(steps, active, strict=True)]
    state: dict[str, Any] = {"step": torch.tensor(max(after), dtype=torch.float32, device="cpu")}
    state["tensor_steps"] = after if min(after) < max(after) else None
    return state
