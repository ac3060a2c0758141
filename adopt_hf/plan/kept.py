"""The plan of a step, kept for the next step: the checks that it still holds, and the numbers that change.

Grouping hundreds of tensors, reading their layouts and building tables of their addresses takes the host longer than
the update takes the device. Between two steps usually only gradients, step counts and hyperparameters change.
`KeptPlan.gradients` compares everything else with the last step, in a few C calls per tensor. `KeptPlan.plan` fills in
the numbers.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf import algorithm
from adopt_hf.backends.bucket import CapturableBucket, RoundedBucket
from adopt_hf.distributed.flat import Partition
from adopt_hf.hyperparameters import check_numbers
from adopt_hf.plan.entries import Entry, FlatEntry, Plan, Waiting, observed
from adopt_hf.plan.known import Known
from adopt_hf.state import rounding

# The options of a param group that determine buckets and backends. All others are numbers.
structural_options = itemgetter("backend", "capturable", "state_bits", "block_size", "bf16_stochastic_round", "seed")

params_of = itemgetter("params")


class WithGradient(NamedTuple):
    """The parameters that had a gradient when the plan was made, one entry per parameter in each list."""

    params: list[Tensor]
    states: list[dict[str, Any]]
    eight_bits: list[bool]  # whether the moments are in 8 bits


class KeptPlan:
    """The buckets of a step, and the data that they depend on."""

    def __init__(self, entries: list[Entry], flats: list[FlatEntry], waiting: list[Waiting]):
        self.entries, self.flats, self.waiting = entries, flats, waiting
        self.known: Known | None = None  # None: the plan cannot be kept

    def remember(
        self, groups: Sequence[Mapping[str, Any]], states: Mapping[Tensor, dict[str, Any]], having: WithGradient
    ) -> None:
        """Note all data that the buckets depend on, for the comparison in `gradients`."""
        self.options = list(map(_options, groups))
        self.params = list(chain.from_iterable(map(params_of, groups)))
        # Comparing all states in order is faster than lookups, unless few states belong to this plan.
        self.looks_up = len(states) > 2 * len(having.states)
        self.owners = list(having.params if self.looks_up else states)
        self.states = list(having.states if self.looks_up else states.values())
        try:
            self.known = Known(self.params, having.states, having.eight_bits)
        except RuntimeError:  # a device without addresses (XLA) has nothing to compare
            return

    def gradients(
        self,
        groups: Sequence[Mapping[str, Any]],
        states: Mapping[Tensor, dict[str, Any]],
        partitions: Mapping[Tensor, Partition],
    ) -> tuple[list[Tensor], list[int]] | None:
        """Return the local gradients and their addresses, or None if data that the buckets depend on has changed.

        This method uses no collective, because processes may communicate only when a plan is made.
        """
        assert self.known is not None  # otherwise the plan was not kept
        if list(map(_options, groups)) != self.options:  # with lengths of groups
            return None
        if not all(map(is_, chain.from_iterable(map(params_of, groups)), self.params)):
            return None
        if self.looks_up:
            if not all(map(is_, map(states.get, self.owners), self.states)):
                return None
        elif len(states) != len(self.states) or not (
            all(map(is_, states, self.owners)) and all(map(is_, states.values(), self.states))
        ):
            return None
        if self.flats and any(partitions.get(flat.param) is not flat.partition for flat in self.flats):
            return None
        try:
            found = self.known.gradients()
        except (KeyError, RuntimeError):
            return None
        if found is None:
            return None
        grads, addresses, steps = found
        if not all(entry.holds(steps) for entry in self.entries):
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
            groups: Param groups, whose numbers are used.
            grads: Gradients of the parameters that have one, in order.
            addresses: Addresses of the gradients if the plan was kept, otherwise None. Gradients of a kept plan have
                the layout of the last step's.
            grad_scale: As in `build.next_plan`.
            found_inf: As in `build.next_plan`.
            compiling: As in `build.next_plan`. Default: False.

        Raises:
            ValueError: If a number in a group is outside its range. Nothing has been changed then.
        """
        factor, overflow = 1.0, False
        is_scaled = grad_scale is not None or found_inf is not None
        if is_scaled and not all(group["capturable"] for group in groups):  # the host needs the values
            factor = 1.0 if grad_scale is None else grad_scale.item()
            overflow = found_inf is not None and found_inf.item() != 0
        plan = Plan(defaultdict(list), defaultdict(list), defaultdict(list), [], [])
        for entry in self.entries:
            group, bucket, mine = groups[entry.group], entry.bucket, entry.mine(grads)
            if addresses is not None:
                assert bucket.memory is not None  # set by the function that made the plan
                bucket.memory.grad_addresses = entry.mine(addresses)
            if isinstance(bucket, CapturableBucket):
                check_numbers(group)
                changing = _on_device(bucket.params[0].device, group, grad_scale, found_inf)
                if compiling:
                    changing["group"] = algorithm.capturable_group_for_compiler(changing["group"])
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


def _options(group: Mapping[str, Any]) -> tuple[Any, ...]:
    own = tuple(group.get("float32_state", ())), group.get(rounding.TENSOR_KEY)
    return (*structural_options(group), is_coupled(group), is_clipped(group), *own, len(group["params"]))


def is_coupled(group: Mapping[str, Any]) -> bool:
    """Return whether weight decay is added to the gradients. GPUs have a separate kernel for that."""
    return group["weight_decay"] != 0 and not group["decouple"]


def is_clipped(group: Mapping[str, Any]) -> bool:
    """Return whether the normalised gradient is clipped. GPUs have a separate capturable kernel without a clip."""
    return group["clip_exp"] is not None


def _on_device(
    device: torch.device, group: dict[str, Any], grad_scale: Tensor | None, found_inf: Tensor | None
) -> dict[str, Any]:
    """Return the numbers of a capturable bucket, with tensors on its device."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.device != device:
        group = group | {"lr": lr.to(device, non_blocking=True)}
    if grad_scale is not None:
        grad_scale = grad_scale.to(device, non_blocking=True)
    if found_inf is not None:
        found_inf = found_inf.to(device, non_blocking=True)
    return {"group": group, "grad_scale": grad_scale, "found_inf": found_inf}
