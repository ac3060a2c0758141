"""Functions that run outside `torch.compile`.

Import this module lazily, inside `step()`: `torch.compiler.disable` imports torch._dynamo, which takes about a second
and changes the exit code of a process that SIGINT kills. Pass as few arguments as possible, because Dynamo installs a
guard for each.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from adopt_hf import backends, first_steps
from adopt_hf.backends import capture
from adopt_hf.backends.bucket import RoundedBucket
from adopt_hf.distributed import peers
from adopt_hf.distributed.flat import Partition
from adopt_hf.plan import build, entries
from adopt_hf.plan.entries import Plan
from adopt_hf.state import tensor_key


class Observer(Protocol):
    """The part of `adopt_hf.monitor.Monitor` that a step calls."""

    def observe(self, groups: Sequence[dict[str, Any]] | None, first: int) -> None:
        """Look at the gradients and the state of `groups`, or of all param groups, before they are updated."""


class Planned(first_steps.Stepped, Protocol):
    """The part of `adopt_hf.ADOPT` that a plan needs."""

    partitions: dict[Tensor, Partition]
    monitor: Observer | None
    kept_plans: build.Kept
    has_noted_first_steps: bool


@torch.compiler.disable  # type: ignore[untyped-decorator]
def update(optimizer: Planned, groups: Sequence[dict[str, Any]] | None, first: int, key: Hashable) -> None:
    """Do the whole update outside `torch.compile`, see `ADOPT._update`."""
    plan = _plan_of(optimizer, False, groups, first, key)
    entries.run(plan)
    _step_rounded(plan.rounded)
    entries.count_steps(plan)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def plan_of(optimizer: Planned, groups: Sequence[dict[str, Any]] | None, first: int, key: Hashable) -> Plan:
    """Return the plan of an update that is compiled."""
    return _plan_of(optimizer, True, groups, first, key)


def _plan_of(
    optimizer: Planned, compiling: bool, groups: Sequence[dict[str, Any]] | None, first: int, key: Hashable
) -> Plan:
    is_first = groups is None and not optimizer.has_noted_first_steps
    if is_first:
        optimizer.has_noted_first_steps = first_steps.note(optimizer)
        peers.compare_options(optimizer)
    if optimizer.monitor is not None:
        optimizer.monitor.observe(groups, first)
    # A GradScaler adds these two attributes.
    scaled = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    groups, states, partitions = groups or optimizer.param_groups, optimizer.state, optimizer.partitions
    capture.check(groups, states)
    if len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == 1:
        tensor_key.give_key(optimizer.param_groups, groups, states, partitions)
    plan = build.next_plan(groups, states, partitions, *scaled, compiling, first, optimizer.kept_plans, key)
    if is_first:
        used = (*plan.buckets, *plan.rounded, *plan.capturable)
        peers.compare_backends(optimizer, (backend.words for backend in used))
    return plan


def _step_rounded(rounded: Mapping[backends.Backend, list[RoundedBucket]]) -> None:
    """Update buckets that are rounded stochastically. Their keys would cause a recompilation in every step."""
    for backend, buckets in rounded.items():
        assert backend.step_rounded is not None  # `backends.choose` has checked it
        backend.step_rounded(buckets)


step_rounded = torch.compiler.disable(_step_rounded)
count_steps = torch.compiler.disable(entries.count_steps)
