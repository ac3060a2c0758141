"""Flat parameters as ZeRO makes them: the only file here that knows how the package describes one.

A redesign of that description changes this file. The golden results stay.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adopt_hf import ADOPT
from adopt_hf.distributed.flat import Partition, Stretch


class Rank:
    """One process of several that share the flattened tensors; the others are only counted.

    Args:
        sizes: The elements of each tensor.
        rank: The number of this process.
        world: The number of processes.
    """

    def __init__(self, sizes: Sequence[int], rank: int, world: int) -> None:
        self.sizes, self.total = list(sizes), sum(sizes)
        self.size = -(-self.total // world)
        self.first, self.rank = rank * self.size, rank
        self.arrived: list[bool | None] = []
        self.whole = torch.zeros(0)  # the flat gradient of all processes

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return this process's part of the flattened tensors, with zeros as padding."""
        flat = torch.cat([t.flatten() for t in tensors])
        flat = torch.cat([flat, flat.new_zeros(self.size)])
        return flat[self.first : self.first + self.size].clone()

    def receive(self, grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
        """Return this process's flat gradient, and remember which tensors have a gradient."""
        filled = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, like, strict=True)]
        before = self.arrived or [None] * len(filled)
        self.arrived = [
            True if g is not None else None if was is None else False for g, was in zip(grads, before, strict=True)
        ]
        self.whole = torch.cat([t.flatten() for t in filled])
        return self.of(filled)

    def _total(self, counts: Tensor) -> None:
        """Add the counts of the other processes."""
        elsewhere = self.whole.clone()
        elsewhere[self.first : self.first + self.size] = 0
        counts += torch.stack([torch.count_nonzero(part) for part in elsewhere.split(self.sizes)])

    def describe(self, optimizer: ADOPT, flat: Tensor) -> None:
        """Tell `optimizer` which tensors are in `flat`."""
        stretches, offset = [], 0
        for index, size in enumerate(self.sizes):
            low, high = max(offset, self.first), min(offset + size, self.first + self.size)
            if low < high:
                stretches.append(Stretch(index, low - self.first, high - low))
            offset += size
        optimizer.set_partition(
            flat, Partition(len(self.sizes), stretches, lambda: self.arrived, self._total, number=self.rank)
        )
