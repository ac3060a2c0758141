"""Check the saved state of one parameter, and translate it to the entries of this class."""

from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf.distributed.flat import Partition
from adopt_hf.distributed.sharding import is_dtensor, local
from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.state import conversion, formats, quantization

LARGEST_COUNT = 2**24  # the largest count in float32
PIECE = 2**24  # elements of one comparison, which bounds the temporaries


class Member(NamedTuple):
    """A parameter of the optimizer, and its entry in a saved state."""

    saved_id: Any
    param: Tensor
    number: int  # among all parameters
    position: int  # in its group
    group_index: int
    group: Mapping[str, Any]  # param group of the optimizer
    block_size: int  # of the saved codes

    @property
    def what(self) -> str:
        """The name of this saved state, for an error message."""
        named = self.group.get("param_names")
        name = f" ({named[self.position]})" if named else ""
        return f"the saved state of parameter {self.saved_id}{name}"


def translated_state(member: Member, saved: Any, partition: Partition | None) -> dict[str, Any]:
    """Return the state of one parameter, checked, with `step` as a 0-d float32 CPU tensor."""
    what, p = member.what, member.param
    if not isinstance(saved, dict):
        raise ValueError(f"{what} is of type {type(saved).__name__}, which must be a dict")
    if not saved:
        return {}
    coded = bool(saved.keys() & set(conversion.CODES))
    wanted = conversion.CODES if coded else conversion.FLOATS
    missing = {"step", *wanted} - saved.keys()
    if missing:
        raise ValueError(
            f"{what} has {', '.join(map(str, saved))} but not {', '.join(sorted(missing))}: "
            "it is not the state of an ADOPT optimizer"
        )
    if coded and saved.keys() & set(conversion.FLOATS):
        raise ValueError(
            f"{what} has moments in 8 bits (scales) and in floating point (exp_avg): it must have one format"
        )
    for name in wanted:
        _check_tensor(f"{what} has {name}", saved[name], p)
    formats.format_of(p, member.group, member.position, is_flat=partition is not None)
    if coded:
        _check_codes(member, saved, partition)
    else:
        _check_floats(member, saved)
    state = saved | {
        "step": torch.tensor(step_count(f"{what} has step", saved["step"]), dtype=torch.float32, device="cpu")
    }
    if saved.get("tensor_steps") is not None:
        counts = saved["tensor_steps"]
        if not isinstance(counts, list | tuple):
            raise ValueError(f"{what} has tensor_steps {counts!r:.100}, which must be a list of step counts")
        state["tensor_steps"] = [step_count(f"{what} has tensor_steps with", count) for count in counts]
    return state


def step_count(what: str, value: Any) -> float:
    """Return a step count as a float."""
    plain = value
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta and value.layout == torch.strided:
        plain = value.item()
    if isinstance(plain, Real) and not isinstance(plain, bool):
        count = float(plain)
        if 0 <= count <= LARGEST_COUNT and count.is_integer():
            return count
    raise ValueError(f"{what} {plain!r:.100}, which must be a whole number from 0 to {LARGEST_COUNT}")


def _check_tensor(what: str, value: Any, p: Tensor) -> None:
    """Raise ValueError if `value` is not a tensor with readable elements."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} of type {type(value).__name__}, which must be a tensor")
    if value.layout != torch.strided:
        raise ValueError(f"{what} of layout {value.layout}, which must be torch.strided")
    if value.is_meta and not p.is_meta:
        raise ValueError(f"{what} on the meta device, which holds no numbers: load a state that was saved with them")


def _check_shape(what: str, name: str, moment: Tensor, p: Tensor) -> None:
    if moment.shape != p.shape:
        raise ValueError(
            f"{what} has {name} of shape {tuple(moment.shape)}, the parameter has {tuple(p.shape)}: this is the state "
            "of another model"
        )
    if is_dtensor(moment) != is_dtensor(p):
        raise ValueError(
            f"{what} has {name} as a {type(moment).__name__}, the parameter is a {type(p).__name__}: "
            "set_optimizer_state_dict of torch.distributed.checkpoint.state_dict shards a whole state, "
            "get_optimizer_state_dict with full_state_dict=True makes one"
        )


def _check_floats(member: Member, saved: dict[str, Any]) -> None:
    p = member.param
    for name in conversion.FLOATS:
        t = saved[name]
        _check_shape(member.what, name, t, p)
        if t.is_complex() != p.is_complex() or not (t.is_floating_point() or t.is_complex()):
            kind = "complex" if p.is_complex() else "real floating-point"
            raise ValueError(
                f"{member.what} has {name} of {t.dtype}, the parameter is of {p.dtype}: it must be a {kind} tensor"
            )
    if _any_below_zero(saved["exp_avg_sq"]):
        raise ValueError(f"{member.what} has exp_avg_sq with numbers below 0, which a mean of squares cannot have")


def _check_codes(member: Member, saved: dict[str, Any], partition: Partition | None) -> None:
    p, block_size = member.param, member.block_size
    for name in conversion.CODES[:2]:
        _check_shape(member.what, name, saved[name], p)
    HYPERPARAMETERS["block_size"].check(f"block_size of {member.what}", block_size)
    here = member.group["block_size"]
    if here != block_size and member.group["state_bits"] == 8:
        raise ValueError(
            f"{member.what} has blocks of {block_size} elements and this optimizer has block_size={here}: "
            f"write block_size={block_size}, or load it with state_bits=32"
        )
    conversion.check_scales(p, saved, partition, block_size, member.what)
    scales = saved["scales"]
    if not scales.is_meta and not quantization.are_scales(local(scales)).all():
        raise ValueError(f"{member.what} has scales that no block of 8-bit moments can have, for instance NaN")


def _any_below_zero(t: Tensor) -> bool:
    t = local(t)
    if t.is_meta:
        return False
    flat = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).reshape(-1)
    if flat.itemsize == 1:  # torch does not compare float8
        flat = flat.float()
    return any(bool((piece < 0).any()) for piece in flat.split(PIECE))  # pieces bound the temporaries
