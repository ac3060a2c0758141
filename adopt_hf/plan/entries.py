"""Entries of a plan: a bucket each, with the data to fill it in and to count its steps, kept from step to step."""

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf import algorithm
from adopt_hf.backends import Backend
from adopt_hf.backends.bucket import Bucket, CapturableBucket, Memory, RoundedBucket
from adopt_hf.distributed.flat import Partition, counted
from adopt_hf.distributed.sharding import sum_over_shards
from adopt_hf.state import conversion, rounding
from adopt_hf.state.formats import Format


class Plan(NamedTuple):
    """One step: the buckets to update, by backend, and the step counts to write afterwards."""

    buckets: dict[Backend, list[Bucket]]
    rounded: dict[Backend, list[RoundedBucket]]
    capturable: dict[Backend, list[CapturableBucket]]  # their backends count the steps
    counted: "list[Entry]"  # entries whose tensors are updated in this step
    counted_flat: list[tuple[dict[str, Any], dict[str, Any]]]  # state of a flat parameter, and its new entries


@dataclass(slots=True)
class Entry:
    """A bucket of whole tensors of one kind with the same step count."""

    backend: Backend
    group: int  # the number of their param group
    bucket: Bucket | RoundedBucket | CapturableBucket
    positions: list[int]  # of its tensors among those with a gradient
    states: list[dict[str, Any]]
    sharding: Any = None
    t: float = 0.0  # step count; unused if capturable
    prefixes: list[int] = field(default_factory=list)  # of the keys of their random bits, which t completes
    counts: "Counts | None" = None
    steps: list[Tensor] = field(default_factory=list)  # the states' `step`: views of `counts`, or tensors to count in

    def mine(self, of_all: list[Any]) -> list[Any]:
        """Return this bucket's items of a list for all tensors with a gradient."""
        return of_all if len(self.positions) == len(of_all) else [of_all[i] for i in self.positions]

    def holds(self, steps: list[Tensor]) -> bool:
        """Return whether the bucket's step counts are those that this entry wrote last.

        Args:
            steps: Step counts of all tensors with a gradient.
        """
        if not self.steps or not all(map(is_, self.mine(steps), self.steps)):
            return False
        if isinstance(self.bucket, CapturableBucket):
            return True
        if self.counts is not None:
            return self.counts.are_as_written()
        return all(float(step) == self.t for step in self.steps)

    def count(self) -> None:
        """Write the new step counts into the states.

        Other frameworks give one step tensor to several parameters. The first call therefore gives each state its own
        tensor, a view of one vector, and later calls count in place. A tensor in shared memory stays where it is,
        because another process reads it.
        """
        self.t += 1
        if self.counts is not None:
            self.t = self.counts.write(self.t)
            return
        if not self.steps:
            steps = [state["step"] for state in self.states]
            if not any(isinstance(step, Tensor) and step.device.type == "cpu" and step.is_shared() for step in steps):
                self.counts = Counts(self.t, len(steps))
                steps = self.counts.views()
            for state, step in zip(self.states, steps, strict=True):
                state["step"] = step
                state.pop("tensor_steps", None)  # of a parameter that is no longer flat
            self.steps = steps
        if self.counts is None:
            for step in self.steps:
                step.add_(1)


class Counts:
    """The step counts of a bucket: equal numbers in one float32 vector on the CPU.

    They are compared and written as bytes. Operations of torch would take longer than the rest of an entry.
    """

    def __init__(self, t: float, count: int) -> None:
        self.memory = array("f", [t]) * count
        self.written = self.memory.tobytes()
        self.vector = torch.frombuffer(self.memory, dtype=torch.float32)
        self.storage = self.vector.untyped_storage()
        self.address = self.storage.data_ptr()

    def views(self) -> list[Tensor]:
        """Return a 0-d tensor for each count."""
        return list(self.vector.unbind())

    def are_as_written(self) -> bool:
        """Return whether the counts have the values written last, and have not moved to shared memory."""
        return self.storage.data_ptr() == self.address and self.memory.tobytes() == self.written

    def write(self, t: float) -> float:
        """Set all counts to `t`, and return `t` in float32."""
        self.memory[:] = array("f", [t]) * len(self.memory)
        self.written = self.memory.tobytes()
        return self.memory[0]


@dataclass(slots=True)
class FlatEntry:
    """A flat parameter, whose tensors have separate step counts."""

    backend: Backend
    group: int
    position: int  # among the tensors with a gradient
    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    scales: Tensor | None  # scales of 8-bit moments
    state: dict[str, Any]
    partition: Partition
    format: Format
    # The buckets of the last step, each with its parts of the flat tensor.
    buckets: list[tuple[list[Any], Bucket | RoundedBucket]] = field(default_factory=list)

    def add_to(self, plan: Plan, grad: Tensor, group: Mapping[str, Any], factor: float) -> None:
        """Add the buckets of this step to `plan`, and its new step counts."""
        counts = self.partition.steps(self.state)
        active = self.partition.active(grad, counts)
        plan.counted_flat.append((self.state, counted(active, counts)))
        old, self.buckets = self.buckets, []
        for i, (t, parts) in enumerate(self._parts(active, counts).items()):
            is_kept = i < len(old) and old[i][0] == parts
            bucket, grads = old[i][1] if is_kept else self._bucket(parts), [part.of(grad) for part in parts]
            bucket = bucket._replace(grads=grads, scalars=algorithm.step_scalars(group, t, factor))
            if is_kept and bucket.memory is not None:
                bucket.memory.grad_addresses = list(map(Tensor.data_ptr, grads))
            if isinstance(bucket, RoundedBucket):
                names = ((self.partition.number, part.tensor) for part in parts)
                bucket = bucket._replace(keys=[rounding.key((group["seed"], *name, int(t))) for name in names])
                plan.rounded[self.backend].append(bucket)
            else:
                plan.buckets[self.backend].append(bucket)
            self.buckets.append((parts, bucket._replace(grads=[])))  # do not keep gradients alive

    def _parts(self, active: Sequence[bool], counts: Sequence[float]) -> Mapping[float, list[Any]]:
        """Return the parts of the flat tensor to update, by step count: spans, or segments with their own blocks."""
        if self.format.is_plain:
            return self.partition.spans(active, counts)
        by_step: dict[float, list[Any]] = defaultdict(list)
        for segment in conversion.segments(self.param.shape, self.partition, self.format.block_size):
            if active[segment.tensor]:
                by_step[counts[segment.tensor]].append(segment)
        return by_step

    def _bucket(self, parts: list[Any]) -> Bucket | RoundedBucket:
        theta, m, v = ([part.of(flat) for part in parts] for flat in (self.param, self.exp_avg, self.exp_avg_sq))
        if self.format.is_plain:
            return Bucket(theta, [], m, v, UNKNOWN, Memory())
        scales = []
        if self.scales is not None:
            scales = [part.scales_of(self.scales, self.format.block_size) for part in parts]
        return RoundedBucket(theta, [], m, v, scales, [], self.format, UNKNOWN, Memory())


UNKNOWN = algorithm.StepScalars(*[0.0] * len(algorithm.StepScalars._fields))  # a plan fills these in


class Waiting(NamedTuple):
    """Tensors at t == 0 whose gradients have been all zero so far (8)."""

    positions: list[int]  # among the tensors with a gradient
    sharding: Any


def run(plan: Plan) -> None:
    """Update the buckets of a plan, except those that are rounded stochastically."""
    for backend, buckets in plan.buckets.items():
        backend.step(buckets)
    for backend, capturable in plan.capturable.items():
        assert backend.step_capturable is not None  # `backends.choose` has checked it
        backend.step_capturable(capturable)


def count_steps(plan: Plan) -> None:
    """Write the new step counts into the states."""
    for entry in plan.counted:
        entry.count()
    for state, new in plan.counted_flat:
        state.update(new)
        if state["tensor_steps"] is None:
            del state["tensor_steps"]


def observed(grads: list[Tensor], sharding: Any) -> list[bool]:
    """Return for each gradient whether it has a non-zero element. NaN is not zero.

    For shards the whole gradient counts, so all processes have the same step count.

    Args:
        grads: Local gradients, all on one device.
        sharding: Their mesh and placements, or None if they are not sharded.
    """
    nonzero = torch.stack([torch.count_nonzero(g) for g in grads])
    if sharding is not None:
        sum_over_shards(sharding, nonzero)
    return [count > 0 for count in nonzero.tolist()]
