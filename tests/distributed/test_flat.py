"""Flat parameters: ADOPT steps them as it steps the tensors that they are made of.

- Whatever the cuts, the trajectory is that of the separate tensors, to the last bit, with late and missing gradients;
  and a wrong count of steps would be seen.
- A tensor without a gradient is unchanged, even where the flat gradient holds an old one.
- Step counts survive a checkpoint; they are in the state only where they differ.
"""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adopt_hf import ADOPT
from adopt_hf.distributed.flat import Partition, Span, Stretch, counted

SETTINGS: dict[str, Any] = {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": 0.1, "decouple": True}
STEPS = 8


class Processes:
    """Several processes in one: each has a cut of the flattened tensors, and they count together."""

    def __init__(self, tensors: list[Tensor], world: int):
        self.tensors = tensors
        flat = torch.cat([t.flatten() for t in tensors])
        self.size = -(-flat.numel() // world)
        padded = torch.cat([flat, flat.new_zeros(self.size * world - flat.numel())])
        self.flats = [torch.nn.Parameter(padded[r * self.size : (r + 1) * self.size].clone()) for r in range(world)]
        self.optimizers = [ADOPT([p], **SETTINGS) for p in self.flats]
        self.arrived: list[bool | None] = [None] * len(tensors)
        self.ever: set[int] = set()
        self.grad = torch.zeros(0)
        for rank, (p, optimizer) in enumerate(zip(self.flats, self.optimizers, strict=True)):
            optimizer.set_partition(p, self.partition(rank))
        self.counting = 0  # the process that steps

    def partition(self, rank: int) -> Partition:
        stretches, offset = [], 0
        for index, t in enumerate(self.tensors):
            low, high = max(offset, rank * self.size), min(offset + t.numel(), (rank + 1) * self.size)
            if low < high:
                stretches.append(Stretch(index, low - rank * self.size, high - low))
            offset += t.numel()
        return Partition(len(self.tensors), stretches, lambda: self.arrived, self.total)

    def total(self, counts: Tensor) -> None:
        """Add to what the process that steps has counted what the others would have."""
        sizes = [t.numel() for t in self.tensors]
        elsewhere = self.grad.clone()
        elsewhere[self.counting * self.size : (self.counting + 1) * self.size] = 0
        counts += torch.stack([torch.count_nonzero(part) for part in elsewhere.split(sizes)])

    def step(self, grads: list[Tensor | None], stale: Tensor | None = None) -> None:
        """`stale`: what the flat gradient holds where a tensor has none."""
        whole = torch.cat([torch.zeros(t.numel()) if g is None else g.flatten() for t, g in zip(self.tensors, grads)])  # noqa: B905
        self.grad = whole
        self.ever |= {index for index, g in enumerate(grads) if g is not None}
        self.arrived = [g is not None if index in self.ever else None for index, g in enumerate(grads)]
        if stale is not None:  # of a gradient that was there once
            old = [there is False for there in self.arrived]
            mask = torch.cat([torch.full((t.numel(),), is_old) for t, is_old in zip(self.tensors, old)])  # noqa: B905
            whole = torch.where(mask, stale, whole)
        padded = torch.cat([whole, whole.new_zeros(self.size * len(self.flats) - whole.numel())])
        for rank, (p, optimizer) in enumerate(zip(self.flats, self.optimizers, strict=True)):
            p.grad = padded[rank * self.size : (rank + 1) * self.size].clone()
            self.counting = rank
            optimizer.step()

    def gathered(self) -> list[Tensor]:
        flat = torch.cat([p.detach() for p in self.flats])
        sizes = [t.numel() for t in self.tensors]
        return [part.view_as(t) for part, t in zip(flat[: sum(sizes)].split(sizes), self.tensors, strict=True)]


def gradients(
    tensors: list[Tensor], step: int, late: dict[int, int], holes: set[tuple[int, int]]
) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(step)
    grads: list[Tensor | None] = []
    for index, t in enumerate(tensors):
        g = torch.randn(t.shape, generator=generator) * (step >= late.get(index, 0))
        grads.append(None if (index, step) in holes else g)
    return grads


def trained_apart(
    tensors: list[Tensor], late: dict[int, int], holes: set[tuple[int, int]]
) -> tuple[list[Tensor], ADOPT]:
    params = [torch.nn.Parameter(t.clone()) for t in tensors]
    optimizer = ADOPT(params, **SETTINGS)
    for step in range(STEPS):
        for p, g in zip(params, gradients(tensors, step, late, holes), strict=True):
            p.grad = g
        optimizer.step()
    return [p.detach() for p in params], optimizer


def make(sizes: list[int]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(size) for size in sizes]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    world=st.integers(1, 4),
    late=st.dictionaries(st.integers(0, 4), st.integers(0, STEPS), max_size=3),
    holes=st.sets(st.tuples(st.integers(0, 4), st.integers(0, STEPS - 1)), max_size=10),
)
def test_the_cuts_change_nothing(
    sizes: list[int], world: int, late: dict[int, int], holes: set[tuple[int, int]]
) -> None:
    tensors = make(sizes)
    apart, optimizer = trained_apart(tensors, late, holes)
    together = Processes(tensors, world)
    for step in range(STEPS):
        together.step(gradients(tensors, step, late, holes), stale=torch.ones(sum(sizes)))
    for p, q in zip(together.gathered(), apart, strict=True):
        assert torch.equal(p, q)
    counts = [
        optimizer.state[p]["step"].item() if p in optimizer.state else 0.0 for p in optimizer.param_groups[0]["params"]
    ]
    for p, sharded in zip(together.flats, together.optimizers, strict=True):
        state = sharded.state[p]
        assert state["step"].item() == max(counts)
        assert ("tensor_steps" in state) == (len(set(counts)) > 1)
        assert list(state.get("tensor_steps", [max(counts)] * len(sizes))) == counts


def test_counting_all_tensors_as_one_would_be_seen() -> None:
    tensors, late, holes = make([4, 5]), {1: 3}, {(0, 5)}
    apart, _ = trained_apart(tensors, late, holes)
    flat = torch.nn.Parameter(torch.cat(tensors))
    naive = ADOPT([flat], **SETTINGS)
    for step in range(STEPS):
        grads = gradients(tensors, step, late, holes)
        flat.grad = torch.cat([torch.zeros_like(t) if g is None else g for t, g in zip(tensors, grads, strict=True)])
        naive.step()
    assert (flat.detach() - torch.cat(apart)).abs().max() > 1e-2


def test_before_anybody_can_tell_what_arrived_the_gradient_itself_tells() -> None:
    """A framework's step on zero gradients leaves no trace; one on real gradients is a step."""
    tensors = make([3, 4])
    processes = Processes(tensors, 2)
    for p, optimizer in zip(processes.flats, processes.optimizers, strict=True):
        p.grad, processes.grad = torch.zeros_like(p), torch.zeros(7)
        optimizer.step()
        assert optimizer.state[p]["step"].item() == 0
    assert all(map(torch.equal, processes.gathered(), tensors))
    processes.grad = torch.cat([torch.ones(3), torch.zeros(4)])
    for rank, (p, optimizer) in enumerate(zip(processes.flats, processes.optimizers, strict=True)):
        p.grad = torch.cat([processes.grad, torch.zeros(1)])[rank * 4 : (rank + 1) * 4]
        processes.counting = rank
        optimizer.step()
        assert optimizer.state[p]["tensor_steps"] == [1.0, 0.0]


def test_step_counts_survive_a_checkpoint() -> None:
    tensors, late = make([4, 5]), {1: 3}
    whole, halves = Processes(tensors, 2), Processes(tensors, 2)
    for step in range(STEPS):
        grads = gradients(tensors, step, late, set())
        whole.step(grads)
        if step == 4:
            saved = [
                (p.detach().clone(), copy.deepcopy(o.state_dict()))
                for p, o in zip(halves.flats, halves.optimizers, strict=True)
            ]
            halves = Processes(tensors, 2)
            for p, optimizer, (weights, state) in zip(halves.flats, halves.optimizers, saved, strict=True):
                p.data.copy_(weights)
                optimizer.load_state_dict(state)
        halves.step(grads)
    assert all(map(torch.equal, halves.gathered(), whole.gathered()))


def test_neighbours_with_one_count_are_one_span() -> None:
    partition = Partition(3, [Stretch(0, 0, 4), Stretch(1, 4, 2), Stretch(2, 8, 3)], lambda: [None] * 3, lambda _: None)
    assert partition.spans([True] * 3, [5.0] * 3) == {5.0: [Span(0, 6), Span(8, 3)]}
    assert partition.spans([True] * 3, [5.0, 4.0, 5.0]) == {5.0: [Span(0, 4), Span(8, 3)], 4.0: [Span(4, 2)]}
    assert partition.spans([True, False, True], [5.0] * 3) == {5.0: [Span(0, 4), Span(8, 3)]}


def test_a_state_of_another_model_is_refused() -> None:
    partition = Partition(3, [], lambda: [None] * 3, lambda _: None)
    state = counted([True, False], [1.0, 1.0])
    with pytest.raises(ValueError, match="counts the steps of 2 tensors, and the flat parameter holds 3"):
        partition.steps(state)


def test_a_parameter_that_is_flat_no_more_is_counted_as_a_whole() -> None:
    tensors = make([2, 3])
    processes = Processes(tensors, 1)
    for step in range(3):
        processes.step(gradients(tensors, step, {1: 2}, set()))
    flat = torch.nn.Parameter(torch.zeros(5))
    optimizer = ADOPT([flat], **SETTINGS)
    optimizer.load_state_dict(processes.optimizers[0].state_dict())
    assert optimizer.state[flat]["tensor_steps"] == [3.0, 1.0]
    flat.grad = torch.ones(5)
    optimizer.step()
    assert "tensor_steps" not in optimizer.state[flat]
    assert optimizer.state[flat]["step"].item() == 4
