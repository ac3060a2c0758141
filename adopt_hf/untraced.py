"""What `torch.compile` runs and does not trace.

Imported when a step is made and not with the package: `torch.compiler.disable` imports torch._dynamo, which takes a
second and changes how a process ends. What is given is as little as can be, since Dynamo guards on all of it.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from adopt_hf import backends, entries, first_steps, plan, single
from adopt_hf.backends import capture
from adopt_hf.backends.bucket import RoundedBucket
from adopt_hf.optimizer import ADOPT


@torch.compiler.disable  # type: ignore[untyped-decorator]
def plan_of(
    optimizer: ADOPT,
    compiling: bool,
    groups: Sequence[dict[str, Any]] | None = None,
    first: int = 0,
    key: Hashable = None,
) -> entries.Plan:
    """Return the plan of the optimizer's next step, or of `groups` only, whose parameters count from `first` on."""
    if groups is None:
        first_steps.note(optimizer)
    # A GradScaler puts the last two there.
    scaled = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    groups, states, partitions = groups or optimizer.param_groups, optimizer.state, optimizer.partitions
    capture.check(groups, states)
    single.give_key(optimizer.param_groups, groups, states, partitions)
    return plan.next_plan(groups, states, partitions, *scaled, compiling, first, optimizer.kept_plans, key)


count_steps = torch.compiler.disable(entries.count_steps)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def step_rounded(rounded: Mapping[backends.Backend, list[RoundedBucket]]) -> None:
    """Update what is rounded stochastically: the keys of its random bits would make a new program of every step."""
    for backend, buckets in rounded.items():
        assert backend.step_rounded is not None  # it would not have been chosen
        backend.step_rounded(buckets)
