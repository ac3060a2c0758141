"""What `torch.compile` runs and does not trace.

Imported when a step is made and not with the package: `torch.compiler.disable` imports torch._dynamo, which takes a
second and changes how a process ends. What is given is as little as can be, since Dynamo guards on all of it.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from adopt_hf import backends, first_steps
from adopt_hf.backends import capture
from adopt_hf.backends.bucket import RoundedBucket
from adopt_hf.optimizer import ADOPT, run
from adopt_hf.plan import build, entries
from adopt_hf.plan.entries import Plan
from adopt_hf.state import tensor_key


@torch.compiler.disable  # type: ignore[untyped-decorator]
def update(optimizer: ADOPT, groups: Sequence[dict[str, Any]] | None, first: int, key: Hashable) -> None:
    """Do the whole update where nothing is compiled, see `ADOPT._update`."""
    plan = _plan_of(optimizer, False, groups, first, key)
    run(plan)
    _step_rounded(plan.rounded)
    entries.count_steps(plan)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def plan_of(optimizer: ADOPT, groups: Sequence[dict[str, Any]] | None, first: int, key: Hashable) -> Plan:
    """Return the plan of the update, which is compiled."""
    return _plan_of(optimizer, True, groups, first, key)


def _plan_of(
    optimizer: ADOPT, compiling: bool, groups: Sequence[dict[str, Any]] | None, first: int, key: Hashable
) -> Plan:
    if groups is None and not optimizer.has_noted_first_steps:
        optimizer.has_noted_first_steps = first_steps.note(optimizer)
    # A GradScaler puts the last two there.
    scaled = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    groups, states, partitions = groups or optimizer.param_groups, optimizer.state, optimizer.partitions
    capture.check(groups, states)
    if len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == 1:
        tensor_key.give_key(optimizer.param_groups, groups, states, partitions)
    return build.next_plan(groups, states, partitions, *scaled, compiling, first, optimizer.kept_plans, key)


def _step_rounded(rounded: Mapping[backends.Backend, list[RoundedBucket]]) -> None:
    """Update what is rounded stochastically: the keys of its random bits would make a new program of every step."""
    for backend, buckets in rounded.items():
        assert backend.step_rounded is not None  # it would not have been chosen
        backend.step_rounded(buckets)


step_rounded = torch.compiler.disable(_step_rounded)
count_steps = torch.compiler.disable(entries.count_steps)
