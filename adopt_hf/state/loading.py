"""Saved states of other ADOPTs and of earlier versions: check them, and bring them into this class's terms."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf.distributed.flat import Partition
from adopt_hf.distributed.sharding import is_dtensor
from adopt_hf.hyperparameters import HYPERPARAMETERS, check_group, keep_running_mean, of_group
from adopt_hf.state import conversion, formats, names, quantization, rounding

# Options of torch-adopt's and timm's groups: how the update is computed, and variants of it that ADOPT here has not.
FOREIGN_IMPLEMENTATION = {"foreach", "fused", "capturable", "max_lr_snapshot"}
KEPT = (*of_group("execution", "storage"), "float32_state")  # as they are here, or are not
FOREIGN_VARIANT = {"differentiable", "caution", "corrected_weight_decay"}
# torch's Adam, AdamW, NAdam and RAdam write these into the groups of a state that they load, ADOPT's too.
OF_ADAM = {"amsgrad", "momentum_decay", "decoupled_weight_decay", "bias_correction"}
LARGEST_COUNT = 2**24  # float32 counts no further
PIECE = 2**24  # elements that are looked at together
# How a run goes on where an optimizer refuses the state of another one; the end of a sentence.
WEIGHTS_ONLY = (
    "the weights only: load the model from the checkpoint (from_pretrained), and start the new run without "
    "resume_from_checkpoint, load_state or load_state_dict"
)


def is_adopt(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether `groups`, the param groups of an optimizer or of a saved state, are those of ADOPT.

    The groups of this class and of timm's Adopt have `clip_exp`. Those of torch-adopt have `decouple` (`decoupled` in
    its first version) and `maximize`; Prodigy's and D-Adaptation's have `decouple` only.
    """
    groups = list(groups)
    return bool(groups) and all(
        not OF_ADAM & group.keys()
        and ("clip_exp" in group or ("maximize" in group and ("decouple" in group or "decoupled" in group)))
        for group in groups
    )


def plain(value: Any) -> Any:
    """Return an entry of a param group with Python's own numbers, strings, tuples, lists and dicts in place of others.

    Schedules write numpy numbers, and configuration libraries have lists and numbers of their own.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str) or isinstance(value, Tensor):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(x) for key, x in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        items = [plain(x) for x in value]
        return items if isinstance(value, list) else tuple(items)
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):  # an array, or a bool of numpy's
        return value.tolist()
    return value


class Member(NamedTuple):
    """A parameter of the optimizer, and its entry of a saved state."""

    saved_id: Any
    param: Tensor
    number: int  # among all parameters
    position: int  # in its group
    group_index: int
    group: Mapping[str, Any]  # the optimizer's
    block_size: int  # of the saved codes

    @property
    def what(self) -> str:
        """The saved state of this parameter, for an error message."""
        named = self.group.get("param_names")
        name = f" ({named[self.position]})" if named else ""
        return f"the saved state of parameter {self.saved_id}{name}"


def members(saved_groups: Iterable[Mapping[str, Any]], groups: Iterable[Mapping[str, Any]]) -> Iterator[Member]:
    """Yield the parameters of `groups`, each with its id in the saved groups."""
    number = 0
    for index, (there, here) in enumerate(zip(saved_groups, groups, strict=True)):
        block_size = there.get("block_size", HYPERPARAMETERS["block_size"].default)
        for position, (saved_id, p) in enumerate(zip(there["params"], here["params"], strict=True)):
            yield Member(saved_id, p, number, position, index, here, block_size)
            number += 1


class Translated(NamedTuple):
    """A saved state that this class can load."""

    state_dict: dict[str, Any]
    members: list[Member]


def translated(
    saved: Any,
    groups: Sequence[Mapping[str, Any]],
    own: Mapping[Tensor, Mapping[str, Any]],
    partitions: Mapping[Tensor, Partition],
) -> Translated | None:
    """Return `saved` with groups, parameters and step counts as this class writes them. `saved` is not changed.

    Args:
        groups: the param groups of the optimizer that loads the state.
        own: its present state.
        partitions: those of its flat parameters.

    Returns:
        The translated state; None if the number of groups or of their parameters differs, which torch reports itself.

    Raises:
        ValueError: If the state is another optimizer's, or holds something that cannot be ADOPT's.
    """
    check_structure(saved)
    saved_groups = names.matched(saved["param_groups"], groups)
    if [len(g["params"]) for g in saved_groups] != [len(g["params"]) for g in groups]:
        return None
    new_groups = [translated_group(old, new) for old, new in zip(saved_groups, groups, strict=True)]
    found = list(members(saved_groups, groups))
    _check_ids(saved["state"], found)
    state = dict(saved["state"])
    for member in found:
        if member.saved_id in state:
            entry = _without_own(state[member.saved_id], own.get(member.param, {}))
            state[member.saved_id] = _translated_state(member, entry, partitions.get(member.param))
    return Translated({**saved, "param_groups": new_groups, "state": state}, found)


def check_structure(saved: Any) -> None:
    """Raise ValueError if `saved` is not built as what an optimizer's `state_dict()` returns."""
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        has = f"the keys {', '.join(map(str, saved))}" if isinstance(saved, Mapping) else f"type {type(saved).__name__}"
        raise ValueError(
            f"the saved state has {has}: it must be what an optimizer's state_dict() returned, with the keys state and "
            "param_groups"
        )
    state, groups = saved["state"], saved["param_groups"]
    if not isinstance(state, Mapping):
        raise ValueError(f"the saved state has state of type {type(state).__name__}, which must be a dict")
    if not isinstance(groups, Sequence) or not all(isinstance(group, Mapping) for group in groups):
        raise ValueError(f"the saved state has param_groups {groups!r:.200}, which must be a list of dicts")
    for index, group in enumerate(groups):
        ids = group.get("params")
        if not isinstance(ids, list | tuple) or not all(type(i) in (int, str) for i in ids):
            raise ValueError(
                f"param group {index} of the saved state has params {ids!r:.200}, which must be a list of parameter ids"
            )
    ids = [i for group in groups for i in group["params"]]
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise ValueError(f"the saved state has parameter {twice} twice in params")


def _not_adopts(group: Mapping[str, Any]) -> str:
    keys = ", ".join(sorted(str(key) for key in group if key not in ("params", "param_names"))) or "no options"
    if OF_ADAM & group.keys():
        why = "this is the state of Adam or one of its kind (AdamW, NAdam, RAdam), or has been loaded into one"
    else:
        why = "ADOPT's have clip_exp (timm's too), or decouple and maximize (torch-adopt's)"
    return (
        f"the saved state is not ADOPT's. Its param groups have {keys}: {why}. Another optimizer's moments are means "
        "of other numbers (Adam's of raw gradients, not of normalised ones): start ADOPT without this state, with "
        f"{WEIGHTS_ONLY}"
    )


def _check_ids(state: Mapping[Any, Any], found: Iterable[Member]) -> None:
    ids = {member.saved_id for member in found}
    for key, value in state.items():
        if (
            key not in ids
            and isinstance(value, Mapping)
            and {"step", *conversion.FLOATS, *conversion.CODES} & value.keys()
        ):
            raise ValueError(f"the saved state has a state of parameter {key!r}, which is in none of its param groups")


def translated_group(saved: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Return the param group `saved` in this class's terms; what it lacks is taken from `here`.

    But not `beta2_warmup`: a state that has none is of a run without.

    Raises:
        ValueError: If the group is not ADOPT's, or has an option that ADOPT here has not.
    """
    if not is_adopt([saved]):
        raise ValueError(_not_adopts(saved))
    group = {}
    for name, value in saved.items():
        if name in FOREIGN_VARIANT and value:
            raise ValueError(f"the saved state was trained with {name}={value!r}, which ADOPT here does not have")
        if name not in FOREIGN_VARIANT | FOREIGN_IMPLEMENTATION:
            group["decouple" if name == "decoupled" else name] = value
    keep_running_mean(group)
    group.setdefault("beta2_warmup", False)  # torch-adopt and timm have none
    kept = {name: here[name] for name in here if name not in ("params", "param_names", rounding.TENSOR_KEY)}
    for name in KEPT:
        group.pop(name, None)
    if rounding.TENSOR_KEY in group:
        group[rounding.TENSOR_KEY] = HYPERPARAMETERS["seed"].check(rounding.TENSOR_KEY, group[rounding.TENSOR_KEY])
    return kept | group | check_group(group)


def _without_own(saved: Any, own: Mapping[str, Any]) -> Any:
    """Return the saved state of one parameter without what is not saved but this optimizer's own.

    set_optimizer_state_dict of torch.distributed.checkpoint adds what the present state has and the saved one lacks:
    moments in another form.
    """
    if isinstance(saved, dict) and saved.keys() >= {*conversion.FLOATS, *conversion.CODES}:
        for form in (conversion.FLOATS, conversion.CODES):
            if all(name in own and saved[name] is own[name] for name in form):
                return {name: value for name, value in saved.items() if name not in form}
    return saved


def _translated_state(member: Member, saved: Any, partition: Partition | None) -> dict[str, Any]:
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
        raise ValueError(f"{what} has moments in 8 bits (scales) and in floating point (exp_avg): it must have one")
    for name in wanted:
        _check_tensor(f"{what} has {name}", saved[name], p)
    formats.format_of(p, member.group, member.position, is_flat=partition is not None)
    if coded:
        _check_codes(member, saved, partition)
    else:
        _check_floats(member, saved)
    state = saved | {"step": torch.tensor(_count(f"{what} has step", saved["step"]), dtype=torch.float32, device="cpu")}
    if saved.get("tensor_steps") is not None:
        counts = saved["tensor_steps"]
        if not isinstance(counts, list | tuple):
            raise ValueError(f"{what} has tensor_steps {counts!r:.100}, which must be a list of step counts")
        state["tensor_steps"] = [_count(f"{what} has tensor_steps with", count) for count in counts]
    return state


def _count(what: str, value: Any) -> float:
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
    """Raise ValueError if `value` is no tensor whose elements can be read."""
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
    if not scales.is_meta and not quantization.are_scales(_local(scales)).all():
        raise ValueError(f"{member.what} has scales that no block of 8-bit moments can have, for instance NaN")


def _any_below_zero(t: Tensor) -> bool:
    t = _local(t)
    if t.is_meta:
        return False
    flat = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).reshape(-1)
    if flat.itemsize == 1:  # float8, which cannot be compared
        flat = flat.float()
    return any(bool((piece < 0).any()) for piece in flat.split(PIECE))  # without a temporary of its size


def _local(t: Tensor) -> Tensor:
    return t.to_local() if is_dtensor(t) else t
