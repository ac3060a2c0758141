"""The formats of results: moments of 32, 16 or 8 bits, and parameters rounded to nearest or stochastically.

32    float32 (float64 for float64 parameters): `exp_avg`, `exp_avg_sq`
16    bfloat16, rounded stochastically: `exp_avg`, `exp_avg_sq`
8     the blocks of `quantization`: `exp_avg_codes`, `exp_avg_sq_codes`, `scales`. Three kinds of tensors keep 32 bits:
      tensors of fewer than 4096 elements, those marked by `keep_float32`, and DTensors whose shards are not whole rows.
      The last is a WARNING, once a process
"""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf.distributed.sharding import is_dtensor
from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.state import quantization

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

logger = logging.getLogger("adopt_hf")

MARK = "adopt_float32_state"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Format(NamedTuple):
    """The storage format of one parameter and its moments."""

    bits: int
    block_size: int
    round_param: bool

    @property
    def is_plain(self) -> bool:
        """Whether moments are not rounded, and the parameter at most to nearest."""
        return self.bits == 32 and not self.round_param


def keep_float32(params: Iterable[Tensor]) -> None:
    """Mark parameters that keep float32 moments with `state_bits=8`. Call this before the optimizer is created.

    Args:
        params: Parameters to mark.
    """
    for p in params:
        setattr(p, MARK, True)


def float32_apart(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the param groups of an ADOPT, with separate groups for parameters that keep float32 moments.

    ZeRO makes one flat tensor of a group, which has one format. The new groups have `state_bits=32`.
    """
    result = []
    for group in groups:
        marked = group.get("float32_state", ())
        small = (i for i, p in enumerate(group["params"]) if _whole_numel(p) < quantization.SMALLEST_TENSOR)
        kept = {*marked, *small} if group["state_bits"] == 8 else set()
        if not kept:
            result.append(group)
            continue
        others = set(range(len(group["params"]))) - kept
        options = {name: value for name, value in group.items() if name != "float32_state"}
        for positions, bits in ((others, 8), (kept, 32)):
            if positions:
                lists = {name: group[name] for name in ("params", "param_names") if name in group}
                chosen: dict[str, Any] = {
                    name: [values[i] for i in sorted(positions)] for name, values in lists.items()
                }
                result.append({**options, **chosen, "state_bits": bits})
    return result


def _whole_numel(p: Tensor) -> int:
    return int(getattr(p, "ds_numel", p.numel()))  # ZeRO 3 leaves an empty tensor and notes its size


def note_marked(group: dict[str, Any]) -> None:
    """Write the positions of marked parameters into a group with 8-bit moments, unless it has a list of them."""
    marked = [i for i, p in enumerate(group["params"]) if getattr(p, MARK, False)]
    if group["state_bits"] == 8 and marked:
        group.setdefault("float32_state", marked)


def check(group: Mapping[str, Any]) -> None:
    """Check a param group whose options have been checked one by one.

    Raises:
        ValueError: If a parameter cannot have the format that the group asks for, or options exclude each other.
    """
    _check_capturable(group)
    for p in group["params"]:
        if p.requires_grad:  # a frozen parameter has no state; it is checked when it is unfrozen
            _check_dtype(p, group["state_bits"])


def format_of(p: Tensor, group: Mapping[str, Any], position: int, is_flat: bool) -> Format:
    """Return the storage format of a parameter.

    Args:
        p: The parameter.
        group: Its param group.
        position: Its position in the group.
        is_flat: Whether the parameter is flat, and holds several tensors. The position is ignored then.

    Raises:
        ValueError: If an option of the group or the parameter's dtype was changed to an unsupported value after
            construction.
    """
    for name in ("state_bits", "block_size"):
        HYPERPARAMETERS[name].check(name, group[name])
    _check_capturable(group)
    _check_dtype(p, group["state_bits"])
    round_param = group["bf16_stochastic_round"] and p.dtype == torch.bfloat16
    bits = group["state_bits"]
    if bits == 8 and not is_flat and (position in group.get("float32_state", ()) or not _can_be_blocked(p, group)):
        bits = 32
    return Format(bits, group["block_size"], round_param)


def _check_capturable(group: Mapping[str, Any]) -> None:
    bits, rounds = group["state_bits"], group["bf16_stochastic_round"]
    if group["capturable"] and (bits < 32 or rounds):
        what = "bf16_stochastic_round=True" if bits == 32 else f"state_bits={bits}"
        raise ValueError(
            f"{what} cannot be combined with capturable=True, because its random bits are made on the host: remove one"
        )


def _check_dtype(p: Tensor, bits: int) -> None:
    if bits < 32 and p.dtype not in DTYPES:
        allowed = ", ".join(map(str, DTYPES))
        raise ValueError(
            f"state_bits={bits} takes parameters of {allowed}, got {p.dtype} of shape {tuple(p.shape)}: put it into a "
            "param group with state_bits=32"
        )


def _can_be_blocked(p: Tensor, group: Mapping[str, Any]) -> bool:
    if p.numel() < quantization.SMALLEST_TENSOR:
        return False
    if not is_dtensor(p):
        return True
    # The strided shards of dimension 0 that FSDP2 makes of experts and of tensor parallelism are whole rows, too.
    by_rows = all(placement.is_replicate() or getattr(placement, "dim", None) == 0 for placement in p.placements)
    if by_rows and quantization.has_rows(p.shape, group["block_size"]):
        return True
    _warn_of_float32(p, group["block_size"])
    return False


_warned: set[str] = set()  # in this process


def _warn_of_float32(p: "DTensor", block_size: int) -> None:
    if "float32" not in _warned:
        _warned.add("float32")
        logger.warning(
            "state_bits=8: the moments of a parameter of shape %s stay in float32, which takes 8 bytes per element and "
            "not 2. Blocks of 8 bits need shards that are whole rows of at least %d elements, and this parameter is "
            "sharded as %s. More parameters may stay so. state_bits=16 has no such limit",
            tuple(p.shape),
            block_size // 2,
            p.placements,
        )
