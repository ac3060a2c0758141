"""The plan of a step, kept for the next one: the checks that it still holds, and the numbers that change.

To group hundreds of tensors, look at their layouts and build tables of their addresses takes the host longer than the
update takes the device. Between two steps, as a rule, only the gradients, the step counts and the hyperparameters
change. `KeptPlan.gradients` compares all else with what it was, in a few C calls a tensor, and `KeptPlan.plan` fills in
the numbers.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, compress
from operator import attrgetter, eq, is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from adopt_hf import algorithm, moments, rounding
from adopt_hf.backends import Backend
from adopt_hf.backends.bucket import Bucket, CapturableBucket, Memory, RoundedBucket
from adopt_hf.partition import Partition, counted
from adopt_hf.sharding import locally, needs_redistribution, sharding_of, sum_over_shards
from adopt_hf.storage import Storage

Columns = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # theta, g, m, v as a bucket has them

# What of a param group decides how its tensors are grouped and which backend updates them. The rest are numbers.
structural_options = itemgetter("backend", "capturable", "state_bits", "block_size", "bf16_stochastic_round", "seed")

gradient_of = attrgetter("grad")
params_of = itemgetter("params")
dtype_of = attrgetter("dtype")
step_of = itemgetter("step")


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
    counts: Tensor | None = None  # t of each, in one vector
    steps: list[Tensor] = field(default_factory=list)  # the states' `step`: views of `counts`, or tensors to count in

    def mine(self, of_all: list[Any]) -> list[Any]:
        """Return what belongs to the tensors of this bucket, of a list for all tensors with a gradient."""
        return of_all if len(self.positions) == len(of_all) else [of_all[i] for i in self.positions]

    def holds(self, steps: list[Tensor]) -> bool:
        """Return whether the step counts, of all tensors with a gradient, are those that this entry wrote last."""
        if not self.steps or not all(map(is_, self.mine(steps), self.steps)):
            return False
        if isinstance(self.bucket, CapturableBucket):
            return True
        known: list[float] = [float(step) for step in self.steps] if self.counts is None else self.counts.tolist()
        return known.count(self.t) == len(known)

    def count(self) -> None:
        """Write the new step counts into the states.

        Other frameworks hand out one tensor to several parameters. So the first time each state gets a tensor of its
        own, a view of one vector, which is counted in place from then on. A tensor in shared memory stays where it is,
        because another process looks at it.
        """
        self.t += 1
        if self.counts is not None:
            self.counts.add_(1)
            return
        if not self.steps:
            steps = [state["step"] for state in self.states]
            if not any(isinstance(step, Tensor) and step.device.type == "cpu" and step.is_shared() for step in steps):
                self.counts = torch.full((len(steps),), self.t, dtype=torch.float32, device="cpu")
                steps = list(self.counts.unbind())
            for state, step in zip(self.states, steps, strict=True):
                state["step"] = step
                state.pop("tensor_steps", None)  # of a parameter that was flat once
            self.steps = steps
        if self.counts is None:
            for step in self.steps:
                step.add_(1)


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
    storage: Storage
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
        """Return the parts of the flat tensor to update, by step count: spans, or pieces with blocks of their own."""
        if self.storage.is_plain:
            return self.partition.spans(active, counts)
        by_step: dict[float, list[Any]] = defaultdict(list)
        for piece in moments.pieces(self.partition, self.storage.block_size):
            if active[piece.tensor]:
                by_step[counts[piece.tensor]].append(piece)
        return by_step

    def _bucket(self, parts: list[Any]) -> Bucket | RoundedBucket:
        theta, m, v = ([part.of(flat) for part in parts] for flat in (self.param, self.exp_avg, self.exp_avg_sq))
        if self.storage.is_plain:
            return Bucket(theta, [], m, v, UNKNOWN, Memory())
        scales = []
        if self.scales is not None:
            scales = [part.scales_of(self.scales, self.storage.block_size) for part in parts]
        return RoundedBucket(theta, [], m, v, scales, [], self.storage, UNKNOWN, Memory())


UNKNOWN = algorithm.StepScalars(*[0.0] * len(algorithm.StepScalars._fields))  # until a plan fills the numbers in


class Waiting(NamedTuple):
    """Tensors at t == 0 whose gradients have been all zero (8)."""

    positions: list[int]  # among the tensors with a gradient
    sharding: Any


class Known(NamedTuple):
    """The tensors with a gradient, an entry each, as they were when the plan was made."""

    params: list[Tensor]
    states: list[dict[str, Any]]
    eight_bits: list[bool]  # whether the moments are in 8 bits


class KeptPlan:
    """The buckets of a step, and all that they rest on."""

    def __init__(self, entries: list[Entry], flats: list[FlatEntry], waiting: list[Waiting]):
        self.entries, self.flats, self.waiting = entries, flats, waiting
        self.known: Known | None = None  # not to be kept

    def remember(
        self,
        groups: Sequence[Mapping[str, Any]],
        states: Mapping[Tensor, dict[str, Any]],
        known: Known,
        columns: Columns,
    ) -> None:
        """Note all that the buckets rest on, for `gradients` to compare with.

        Args:
            columns: The local and real tensors of those known. The gradients are looked at and not kept.
        """
        self.options = list(map(_options, groups))
        self.params = list(chain.from_iterable(map(params_of, groups)))
        grads = list(map(gradient_of, self.params))
        self.types = list(map(type, grads))
        self.has_grad = [grad is not None for grad in grads]
        self.all_have_grad = all(self.has_grad)
        # To look at all states in their order is faster than to look them up, unless few of them are this plan's.
        self.all_states = dict(states) if len(states) <= 2 * len(known.states) else None
        self.moments = self._moments(known)
        self.is_local = not all(
            type(p) in (Parameter, Tensor) and type(g) is type(m) is type(v) is Tensor and not p.is_complex()
            for p, g, m, v in zip(known.params, compress(grads, self.has_grad), *self.moments[:2], strict=True)
        )
        self.shardings = list(map(sharding_of, known.params)) if self.is_local else []
        theta, g, m, v = columns
        self.all_contiguous = all(map(Tensor.is_contiguous, g))
        try:
            self.layouts = list(map(list, self._layouts(theta, g, m, v)))
            self.without_memory = list(map(Tensor.data_ptr, g)).count(0)  # empty ones, and torch's tensors of zeros
        except RuntimeError:  # a device without addresses (XLA): there is nothing to compare, and nothing is kept
            return
        self.known = known

    def gradients(
        self,
        groups: Sequence[Mapping[str, Any]],
        states: Mapping[Tensor, dict[str, Any]],
        partitions: Mapping[Tensor, Partition],
    ) -> tuple[list[Tensor], list[int]] | None:
        """Return the local gradients and their addresses, or None if something has changed that the buckets rest on.

        Calls no other process: all of them must come to know of a change at the same place, where a plan is made.
        """
        if list(map(_options, groups)) != self.options:
            return None
        params = list(chain.from_iterable(map(params_of, groups)))
        if len(params) != len(self.params) or not all(map(is_, params, self.params)):
            return None
        grads = list(map(gradient_of, params))
        if list(map(type, grads)) != self.types:
            return None
        grads = grads if self.all_have_grad else list(compress(grads, self.has_grad))
        assert self.known is not None  # it would not have been kept
        if self.all_states is None:
            if not all(map(is_, map(states.get, self.known.params), self.known.states)):
                return None
        elif len(states) != len(self.all_states) or not (
            all(map(is_, states, self.all_states)) and all(map(is_, states.values(), self.all_states.values()))
        ):
            return None
        if any(partitions.get(flat.param) is not flat.partition for flat in self.flats):
            return None
        try:
            return self._unless_moved(self.known, grads)
        except (KeyError, RuntimeError):  # an entry of the state is gone; a gradient is sparse and has no strides
            return None

    def _layouts(
        self, thetas: list[Tensor], grads: list[Tensor], ms: list[Tensor], vs: list[Tensor]
    ) -> Iterator[Iterator[Any]]:
        """Yield all that has to be as it was, an item a tensor; m and v are known to be the same objects.

        One item after the other: hundreds of tuples at a time would set off Python's garbage collector. torch sees to
        it that a gradient has the shape, the dtype (unless told otherwise) and the device of its parameter.
        """
        for tensors in (thetas, ms, vs, *self.moments[2:]):
            yield map(Tensor.data_ptr, tensors)
        yield map(Tensor.size, thetas)
        yield map(Tensor.stride, thetas)
        yield map(dtype_of, grads)
        yield map(Tensor.numel, grads)
        if self.all_contiguous:
            yield map(Tensor.is_contiguous, grads)
        else:
            yield map(Tensor.stride, grads)
            yield map(Tensor.is_neg, grads)  # the imaginary part of a conjugate, which has gaps, is one

    def _moments(self, known: Known) -> list[list[Tensor]]:
        """Return m and v of each state, and the scales of 8-bit moments."""
        if not any(known.eight_bits):
            return [list(map(itemgetter(name), known.states)) for name in moments.FLOATS]
        names = [moments.CODES if eight else moments.FLOATS for eight in known.eight_bits]
        columns = [[state[name[i]] for state, name in zip(known.states, names, strict=True)] for i in range(2)]
        return [*columns, [state[moments.CODES[2]] for state in compress(known.states, known.eight_bits)]]

    def _unless_moved(self, known: Known, grads: list[Tensor]) -> tuple[list[Tensor], list[int]] | None:
        """Return the local gradients and their addresses, if all four tensors of each parameter lie as they did."""
        steps, now = list(map(step_of, known.states)), self._moments(known)
        if not all(all(map(is_, new, old)) for new, old in zip(now, self.moments, strict=True)):
            return None
        if not all(entry.holds(steps) for entry in self.entries):
            return None
        thetas, (ms, vs) = known.params, now[:2]
        if self.is_local:
            if any(map(needs_redistribution, thetas, grads)) or list(map(sharding_of, thetas)) != self.shardings:
                return None
            thetas, grads, ms, vs = map(list, zip(*map(locally, thetas, grads, ms, vs), strict=True))
        layouts = zip(self._layouts(thetas, grads, ms, vs), self.layouts, strict=True)
        if not all(all(map(eq, now, then)) for now, then in layouts):
            return None
        addresses = list(map(Tensor.data_ptr, grads))
        if addresses.count(0) != self.without_memory:
            return None
        for waiting in self.waiting:
            if any(steps[i] != 0 for i in waiting.positions):
                return None
            if any(observed([grads[i] for i in waiting.positions], waiting.sharding)):
                return None
        return grads, addresses

    def plan(
        self,
        groups: Sequence[dict[str, Any]],
        grads: list[Tensor],
        addresses: list[int] | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        compiling: bool = False,
    ) -> Plan:
        """Return the plan of the step with these (local) gradients.

        Args:
            groups: The param groups, for the numbers in them.
            grads: Those of the parameters that have one, in their order.
            addresses: Of the gradients, if the plan was kept: then they lie as those of the step before.
            grad_scale, found_inf, compiling: As for `plan.next_plan`.

        Raises:
            ValueError: If a number in a group is outside its range; nothing has been changed.
        """
        factor, overflow = 1.0, False
        if not all(group["capturable"] for group in groups):  # the host needs them
            factor = 1.0 if grad_scale is None else grad_scale.item()
            overflow = found_inf is not None and found_inf.item() != 0
        plan = Plan(defaultdict(list), defaultdict(list), defaultdict(list), [], [])
        for entry in self.entries:
            group, bucket, mine = groups[entry.group], entry.bucket, entry.mine(grads)
            if addresses is not None:
                assert bucket.memory is not None  # whoever made the plan gave it one
                bucket.memory.grad_addresses = entry.mine(addresses)
            if isinstance(bucket, CapturableBucket):
                algorithm.check_numbers(group)
                changing = _on_device(bucket.params[0].device, group, grad_scale, found_inf)
                plan.capturable[entry.backend].append(bucket._replace(grads=mine, **changing))
                continue
            if overflow:
                continue
            scalars = algorithm.step_scalars(group, entry.t, factor)
            if isinstance(bucket, RoundedBucket):
                keys = [rounding.key((int(entry.t),), prefix) for prefix in entry.prefixes]
                plan.rounded[entry.backend].append(bucket._replace(grads=mine, keys=keys, scalars=scalars))
            else:
                scalars = scalars.for_compiler() if compiling else scalars
                plan.buckets[entry.backend].append(bucket._replace(grads=mine, scalars=scalars))
            plan.counted.append(entry)
        if not overflow:
            for flat in self.flats:
                flat.add_to(plan, grads[flat.position], groups[flat.group], factor)
        return plan


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


def _options(group: Mapping[str, Any]) -> tuple[Any, ...]:
    own = tuple(group.get("float32_state", ())), group.get(rounding.TENSOR_KEY)
    return (*structural_options(group), is_coupled(group), *own, len(group["params"]))


def is_coupled(group: Mapping[str, Any]) -> bool:
    """Return whether weight decay is added to the gradients, for which GPUs have a kernel of its own."""
    return group["weight_decay"] != 0 and not group["decouple"]


def _on_device(
    device: torch.device, group: dict[str, Any], grad_scale: Tensor | None, found_inf: Tensor | None
) -> dict[str, Any]:
    """Return the numbers of a capturable bucket, those that are tensors on its device."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.device != device:
        group = group | {"lr": lr.to(device, non_blocking=True)}
    if grad_scale is not None:
        grad_scale = grad_scale.to(device, non_blocking=True)
    if found_inf is not None:
        found_inf = found_inf.to(device, non_blocking=True)
    return {"group": group, "grad_scale": grad_scale, "found_inf": found_inf}


def agreement(sharding: Any) -> Callable[[Tensor], None] | None:
    """Return what sums counts over the processes that share a tensor, None if no other process does."""
    return None if sharding is None else partial(sum_over_shards, sharding)
