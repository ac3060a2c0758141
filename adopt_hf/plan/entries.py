"""The buckets of a step, with what they need to be filled in and counted: an entry each, kept from step to step."""

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
    """One step: the buckets to update, by backend, and what becomes of the step counts afterwards."""

    buckets: dict[Backend, list[Bucket]]
    rounded: dict[Backend, list[RoundedBucket]]
    capturable: dict[Backend, list[CapturableBucket]]  # count their steps themselves
    counted: "list[Entry]"  # whose tensors take this step
    counted_flat: list[tuple[dict[str, Any], dict[str, Any]]]  # state of a flat parameter, and its new entries


@dataclass(slots=True)
class Entry:
    """A bucket of whole tensors: those of one kind that have done the same number of steps."""

    backend: Backend
    group: int  # the number of their param group
    bucket: Bucket | RoundedBucket | CapturableBucket
    positions: list[int]  # of its tensors among those with a gradient
    states: list[dict[str, Any]]
    sharding: Any = None
    t: float = 0.0  # unless it is capturable
    prefixes: list[int] = field(default_factory=list)  # of the keys of their random bits, which t completes
    counts: "Counts | None" = None
    steps: list[Tensor] = field(default_factory=list)  # the states' `step`: those of `counts`, or tensors to count in

    def mine(self, of_all: list[Any]) -> list[Any]:
        """Return what belongs to the tensors of this bucket, of a list for all tensors with a gradient."""
        return of_all if len(self.positions) == len(of_all) else [of_all[i] for i in self.positions]

    def holds(self, steps: list[Tensor]) -> bool:
        """Return whether the step counts, of all tensors with a gradient, are those that this entry wrote last."""
        if not self.steps or not all(map(is_, self.mine(steps), self.steps)):
            return False
        if isinstance(self.bucket, CapturableBucket):
            return True
        if self.counts is not None:
            return self.counts.are_as_written()
        return all(float(step) == self.t for step in self.steps)

    def count(self) -> None:
        """Write the new step counts into the states.

        Other frameworks hand out one tensor to several parameters. So the first time each state gets a tensor of its
        own, a view of one vector, which is counted in place from then on. A tensor in shared memory stays where it is,
        because another process looks at it.
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
                state.pop("tensor_steps", None)  # of a parameter that was flat once
            self.steps = steps
        if self.counts is None:
            for step in self.steps:
                step.add_(1)


class Counts:
    """The step counts of a bucket: all the same, in one vector of float32 on the CPU.

    They are compared and written as bytes. Operations of torch would take the host longer than all else of an entry.
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
        """Return whether they have the values that were written last, and have not moved to shared memory."""
        return self.storage.data_ptr() == self.address and self.memory.tobytes() == self.written

    def write(self, t: float) -> float:
        """Set all of them to `t`, and return what it is in float32."""
        self.memory[:] = array("f", [t]) * len(self.memory)
        self.written = self.memory.tobytes()
        return self.memory[0]


@dataclass(slots=True)
class FlatEntry:
    """A flat parameter, whose tensors are counted one by one."""

    backend: Backend
    group: int
    position: int  # among the tensors with a gradient
    param: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    scales: Tensor | None  # of 8-bit moments
    state: dict[str, Any]
    partition: Partition
    format: Format
    # Of the last step: the parts of the flat tensor that a bucket is made of, and the bucket.
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
            self.buckets.append((parts, bucket._replace(grads=[])))  # which are not kept alive

    def _parts(self, active: Sequence[bool], counts: Sequence[float]) -> Mapping[float, list[Any]]:
        """Return the parts of the flat tensor to update, by step count: spans, or segments with blocks of their own."""
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


UNKNOWN = algorithm.StepScalars(*[0.0] * len(algorithm.StepScalars._fields))  # until a plan fills the numbers in


class Waiting(NamedTuple):
    """Tensors at t == 0 whose gradients have been all zero (8)."""

    positions: list[int]  # among the tensors with a gradient
    sharding: Any


def run(plan: Plan) -> None:
    """Update the buckets of a plan, but for those that are rounded stochastically."""
    for backend, buckets in plan.buckets.items():
        backend.step(buckets)
    for backend, capturable in plan.capturable.items():
        assert backend.step_capturable is not None  # it would not have been chosen
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
    """Return for each of `grads`, all on one device, whether it has a non-zero element (NaN counts).

    Of shards the whole gradient counts, not only the local one, so that all processes have the same step count.
    """
    nonzero = torch.stack([torch.count_nonzero(g) for g in grads])
    if sharding is not None:
        sum_over_shards(sharding, nonzero)
    return [count > 0 for count in nonzero.tolist()]
