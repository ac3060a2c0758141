"""Distinct random bits for the parameters of optimizers that have one parameter each.

The bits of a tensor depend on its number among the optimizer's parameters. If each parameter has its own optimizer
(steps inside `backward()`), all parameters have number 0 and would draw the same bits. The param group of such an
optimizer therefore holds a `tensor_key`, which is made once, at the first step. It comes from the parameter's name, or
from its shape, values and first gradient, which are equal in all processes. The state_dict contains it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adopt_hf.distributed.flat import Partition
from adopt_hf.distributed.sharding import local, needs_redistribution, sharding_of, sum_over_shards
from adopt_hf.state import names, rounding
from adopt_hf.state.formats import format_of

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def give_key(
    groups: Sequence[dict[str, Any]],
    copies: Sequence[dict[str, Any]],
    states: Mapping[Tensor, Mapping[str, Any]],
    partitions: Mapping[Tensor, Partition],
) -> None:
    """Write `tensor_key` into the param group of an only parameter that is rounded for the first time.

    Flat parameters get no key: their bits depend on the tensors in them, and processes hold different parts.

    Args:
        groups: All param groups of the optimizer.
        copies: The param groups that this step is planned with: the same, or a copy of one of them.
        states: The states of the parameters.
        partitions: The partitions of flat parameters.
    """
    if len(groups) != 1 or len(groups[0]["params"]) != 1:
        return
    (group,) = groups
    (p,) = group["params"]
    if p.grad is None or p.grad.layout != torch.strided or p in partitions or getattr(p, "_fsdp_flattened", False):
        return
    if p in states and states[p] and float(states[p]["step"]) > 0:
        return
    if not format_of(p, group, 0, is_flat=False).is_plain:
        group[rounding.TENSOR_KEY] = copies[0][rounding.TENSOR_KEY] = _key(group, p, p.grad)


def _key(group: Mapping[str, Any], p: Tensor, grad: Tensor) -> int:
    if "param_names" in group:
        return rounding.key(names.without_wrappers(group["param_names"][0]).encode())
    seen = [p] if needs_redistribution(p, grad) else [p, grad]
    totals = torch.stack([_total(t) for t in seen])
    if (sharding := sharding_of(p)) is not None:
        sum_over_shards(sharding, totals)
    return rounding.key((*p.shape, *totals.tolist()))


def _total(t: Tensor) -> Tensor:
    """Return the sum of the elements' bits, which does not depend on their order."""
    t = local(t).detach()
    return t.view(WORDS[t.itemsize]).sum(dtype=torch.int64)
