"""The plan of a step, kept for the next one: the checks that it still holds, and the numbers that change.

To group hundreds of tensors, look at their layouts and build tables of their addresses takes the host longer than the
update takes the device. Between two steps, as a rule, only the gradients, the step counts and the hyperparameters
change. `KeptPlan.gradients` compares all else with what it was, in a few C calls a tensor, and `KeptPlan.plan` fills in
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

# What of a param group decides how its tensors are grouped and which backend updates them. The rest are numbers.
structural_options = itemgetter("backend", "capturable", "state_bits", "block_size", "bf16_stochastic_round", "seed")

params_of = itemgetter("params")


class WithGradient(NamedTuple):
    """The parameters that had a gradient when the plan was made, an entry each."""

    params: list[Tensor]
    states: list[dict[str, Any]]
    eight_bits: list[bool]  # whether the moments are in 8 bits


class KeptPlan:
    """The buckets of a step, and all that they rest on."""

    def __init__(self, entries: list[Entry], flats: list[FlatEntry], waiting: list[Waiting]):
        self.entries, self.flats, self.waiting = entries, flats, waiting
        self.known: Known | None = None  # not to be kept

    def remember(
        self, groups: Sequence[Mapping[str, Any]], states: Mapping[Tensor, dict[str, Any]], having: WithGradient
    ) -> None:
        """Note all that the buckets rest on, for `gradients` to compare with."""
        self.options = list(map(_options, groups))
        self.params = list(chain.from_iterable(map(params_of, groups)))
        # To look at all states in their order is faster than to look them up, unless few of them are this plan's.
        self.looks_up = len(states) > 2 * len(having.states)
        self.owners = list(having.params if self.looks_up else states)
        self.states = list(having.states if self.looks_up else states.values())
        try:
            self.known = Known(self.params, having.states, having.eight_bits)
        except RuntimeError:  # a device without addresses (XLA): there is nothing to compare, and nothing is kept
            return

    def gradients(
        self,
        groups: Sequence[Mapping[str, Any]],
        states: Mapping[Tensor, dict[str, Any]],
        partitions: Mapping[Tensor, Partition],
    ) -> tuple[list[Tensor], list[int]] | None:
        """Return the local gradients and their addresses, or None if something has changed that the buckets rest on.

        Calls no other process: all of them must come to know of a change at the same place, where a plan is made.
        """
        assert self.known is not None  # it would not have been kept
        if list(map(_options, groups)) != self.options:  # which have the lengths
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
            groups: The param groups, for the numbers in them.
            grads: Those of the parameters that have one, in their order.
            addresses: Of the gradients, if the plan was kept: then they lie as those of the step before.
            grad_scale, found_inf, compiling: As for `plan.next_plan`.

        Raises:
            ValueError: If a number in a group is outside its range; nothing has been changed.
        """
        factor, overflow = 1.0, False
        is_scaled = grad_scale is not None or found_inf is not None
        if is_scaled and not all(group["capturable"] for group in groups):  # the host needs them
            factor = 1.0 if grad_scale is None else grad_scale.item()
            overflow = found_inf is not None and found_inf.item() != 0
        plan = Plan(defaultdict(list), defaultdict(list), defaultdict(list), [], [])
        for entry in self.entries:
            group, bucket, mine = groups[entry.group], entry.bucket, entry.mine(grads)
            if addresses is not None:
                assert bucket.memory is not None  # from the function that made the plan
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
    """Return whether weight decay is added to the gradients, for which GPUs have a kernel of its own."""
    return group["weight_decay"] != 0 and not group["decouple"]


def is_clipped(group: Mapping[str, Any]) -> bool:
    """Return whether there is a clip. Without one a capturable group has a kernel of its own on GPUs."""
    return group["clip_exp"] is not None


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
