"""Flat parameters: what ZeRO makes of a param group, one long tensor a process, with a stretch of each of the tensors.

ADOPT counts steps tensor by tensor, and leaves a tensor without a gradient alone. A flat parameter shows neither: here
is what brings both back, so that a sharded run is the run of one process.
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
    """How a flat parameter is made up.

    Args:
        tensors: how many tensors share it, over all processes; they are numbered alike everywhere.
        stretches: this process's, by ascending start; what none covers is padding.
        arrived: for each tensor, whether a gradient has arrived since the last step; None if that is not known, so that
            the values of the flat gradient have to tell. The same in all processes. Where none has arrived the flat
            gradient may hold an old one.
        total: sums an int64 tensor on the CPU, in place, over the processes that share the tensors.
        number: another one for each flat parameter, and in each process that has another part of the tensors.
    """

    tensors: int
    stretches: Sequence[Stretch]
    arrived: Callable[[], Sequence[bool | None]]
    total: Callable[[Tensor], None]
    number: int = 0

    def steps(self, state: dict[str, Any]) -> list[float]:
        """The step count of each tensor, from the state of the flat parameter."""
        counts = state.get("tensor_steps")
        if counts is None:
            return [float(state["step"])] * self.tensors
        if len(counts) != self.tensors:
            raise ValueError(f"the state counts steps of {len(counts)} tensors, the model has {self.tensors} there")
        return [float(count) for count in counts]

    def active(self, grad: Tensor, steps: Sequence[float]) -> list[bool]:
        """For each tensor, whether this step updates it: it has a gradient, and at its first step a non-zero one.

        Args:
            grad: the flat gradient.
            steps: of each tensor.
        """
        arrived = self.arrived()
        unsure = [there is None or (there and t == 0) for t, there in zip(steps, arrived, strict=True)]
        seen = self._nonzero(grad, unsure) if any(unsure) else [False] * self.tensors
        return [nonzero if doubt else bool(there) for there, doubt, nonzero in zip(arrived, unsure, seen, strict=True)]

    def _nonzero(self, grad: Tensor, asked: Sequence[bool]) -> list[bool]:
        """For each tensor that is asked for, whether its whole gradient has a non-zero element (NaN counts).

        The only place where a step waits for the device of a flat gradient.
        """
        look = [s for s in self.stretches if asked[s.tensor] and s.numel]
        nonzero = torch.zeros(self.tensors, dtype=torch.int64, device="cpu")
        if look:
            counts = torch.stack([torch.count_nonzero(grad.narrow(0, s.start, s.numel)) for s in look]).cpu()
            nonzero.index_add_(0, torch.tensor([s.tensor for s in look], dtype=torch.int64, device="cpu"), counts)
        self.total(nonzero)
        return [count > 0 for count in nonzero.tolist()]

    def spans(self, active: Sequence[bool], steps: Sequence[float]) -> dict[float, list[Span]]:
        """What is to be updated, by step count; neighbours with the same count are one span."""
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
    """The entries of the state after the step: `step`, the largest count, and `tensor_steps` where they differ."""
    after = [t + 1 if updated else t for t, updated in zip(steps, active, strict=True)]
    state: dict[str, Any] = {"step": torch.tensor(max(after), dtype=torch.float32, device="cpu")}
    state["tensor_steps"] = after if min(after) < max(after) else None
    return state
