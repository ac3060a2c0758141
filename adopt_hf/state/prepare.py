"""The state of one parameter, ready for a step: made at the first gradient, converted if its format has changed.

This is the only door through which a step reaches states: nothing else makes or converts one during `step()`.
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
    """What the update reads and writes of a state: m, v, and the scales if both are codes of 8 bits."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    scales: Tensor | None


class _StateDtypes(dict[torch.dtype, torch.dtype]):
    """`algorithm.state_dtype`, looked up once."""

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
    """Return the moments of a parameter in the given format, made or converted in place in `state` if they are not.

    Args:
        p: The parameter.
        state: Its state, empty before its first gradient.
        format: The format that its group asks for.
        partition: Of a flat parameter, else None.
        group: Its param group.
        number: Its number among all parameters, of which the random bits of a conversion are made.

    Raises:
        ValueError: If 8-bit moments are not those of the parameter in blocks of the group's `block_size`.
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
