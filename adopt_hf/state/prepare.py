"""Prepare the state of one parameter for a step: create it at the first gradient, convert it to another format.

No other module creates or converts a state during `step()`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf import algorithm
from adopt_hf.distributed.flat import Partition
from adopt_hf.state import conversion
from adopt_hf.state.formats import Format


class Moments(NamedTuple):
    """The tensors of a state that the update reads and writes: m, v, and the scales of 8-bit codes."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    scales: Tensor | None


class _StateDtypes(dict[torch.dtype, torch.dtype]):
    """A cache of `algorithm.state_dtype`."""

    def __missing__(self, dtype: torch.dtype) -> torch.dtype:
        self[dtype] = algorithm.state_dtype(dtype)
        return self[dtype]


_state_dtypes = _StateDtypes()


def moments(
    p: Tensor,
    state: dict[str, Any],
    format: Format,
    partition: Partition | None,
    group: Mapping[str, Any],
    number: int,
) -> Moments:
    """Return the moments of a parameter in the given format. They are created or converted in `state` if necessary.

    Args:
        p: The parameter.
        state: Its state, empty before its first gradient.
        format: The format that its group asks for.
        partition: The partition of a flat parameter, or None for a whole tensor.
        group: Its param group.
        number: Its number among all parameters, from which the random bits of a conversion are made.

    Raises:
        ValueError: If 8-bit moments do not fit the parameter in blocks of the group's `block_size`.
    """
    if not state:
        conversion.add_zeros(p, state, format, partition)
    if ("scales" in state) != (format.bits == 8) or _has_other_dtypes(p, state, format.bits):
        conversion.convert(p, state, format, partition, group, number)
    if format.bits != 8:
        return Moments(state["exp_avg"], state["exp_avg_sq"], None)
    conversion.check_scales(p, state, partition, format.block_size)
    m, v, scales = conversion.CODES
    return Moments(state[m], state[v], state[scales])


def _has_other_dtypes(p: Tensor, state: Mapping[str, Any], bits: int) -> bool:
    if bits == 8:
        return False
    dtype = _state_dtypes[p.dtype] if bits == 32 else torch.bfloat16
    return bool(state["exp_avg"].dtype != dtype or state["exp_avg_sq"].dtype != dtype)
