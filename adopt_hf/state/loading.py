"""Load saved states of this class, of other ADOPTs and of earlier versions, after a check of all they contain."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from adopt_hf.distributed.flat import Partition
from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.state import conversion, differences, formats, names
from adopt_hf.state.saved_groups import translated_group
from adopt_hf.state.saved_parameter import Member, translated_state


def load(
    optimizer: Optimizer,
    partitions: Mapping[Tensor, Partition],
    state_dict: dict[str, Any],
    as_torch: Callable[[dict[str, Any]], None],
) -> None:
    """Load a saved state into an ADOPT.

    Args:
        optimizer: The ADOPT.
        partitions: The partitions of its flat parameters.
        state_dict: The saved state.
        as_torch: `load_state_dict` of torch's optimizers, which casts moments to the dtype of their parameter.

    Raises:
        ValueError: If the state cannot be loaded. Nothing has been changed then.
    """
    check_structure(state_dict)
    before = differences.numbers(optimizer.param_groups)
    new: Translated | None = None

    def translate(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        nonlocal new
        new = translated(saved, optimizer.param_groups, optimizer.state, partitions)
        return saved if new is None else new.state_dict

    def restore_precision(_: Optimizer) -> None:
        assert new is not None  # otherwise torch has raised an error
        for member in new.members:
            saved, p = new.state_dict["state"].get(member.saved_id), member.param
            if saved:
                state = optimizer.state[p]
                for name in (*conversion.FLOATS, *conversion.CODES):
                    if name in saved:
                        state[name] = conversion.loaded(saved[name], p.device)
                _bring_into_form(member, state, optimizer.param_groups[member.group_index], partitions.get(p))

    hooks = (
        optimizer.register_load_state_dict_pre_hook(translate),
        optimizer.register_load_state_dict_post_hook(restore_precision, prepend=True),
    )
    try:
        as_torch(state_dict)
    finally:
        for hook in hooks:
            hook.remove()
    differences.warn(before, optimizer.param_groups)


def _bring_into_form(
    member: Member, state: dict[str, Any], group: Mapping[str, Any], partition: Partition | None
) -> None:
    """Convert the loaded state of a parameter to the format that its group asks for."""
    wanted = formats.format_of(member.param, group, member.position, is_flat=partition is not None)
    coded = "scales" in state
    if not coded or wanted.bits != 8:
        block_size = member.block_size if coded else None
        conversion.convert(member.param, state, wanted, partition, group, member.number, block_size)


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
    """Return `saved` with groups, parameters and step counts as this class writes them.

    Args:
        saved: The saved state, which stays unchanged.
        groups: The param groups of the optimizer that loads the state.
        own: The present state of that optimizer.
        partitions: The partitions of its flat parameters.

    Returns:
        The translated state, or None if the number of groups or of their parameters differs. torch reports that.

    Raises:
        ValueError: If the state is another optimizer's, or holds a value that ADOPT's state cannot have.
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
            state[member.saved_id] = translated_state(member, entry, partitions.get(member.param))
    return Translated({**saved, "param_groups": new_groups, "state": state}, found)


def check_structure(saved: Any) -> None:
    """Raise ValueError if `saved` does not have the structure of an optimizer's `state_dict()`."""
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


def _check_ids(state: Mapping[Any, Any], found: Iterable[Member]) -> None:
    ids = {member.saved_id for member in found}
    for key, value in state.items():
        if (
            key not in ids
            and isinstance(value, Mapping)
            and {"step", *conversion.FLOATS, *conversion.CODES} & value.keys()
        ):
            raise ValueError(f"the saved state has a state of parameter {key!r}, which is in none of its param groups")


def _without_own(saved: Any, own: Mapping[str, Any]) -> Any:
    """Return the saved state of one parameter without the entries that come from this optimizer's own state.

    set_optimizer_state_dict of torch.distributed.checkpoint adds entries that the present state has and the saved one
    lacks. These are moments in another format.
    """
    if isinstance(saved, dict) and saved.keys() >= {*conversion.FLOATS, *conversion.CODES}:
        for form in (conversion.FLOATS, conversion.CODES):
            if all(name in own and saved[name] is own[name] for name in form):
                return {name: value for name, value in saved.items() if name not in form}
    return saved
