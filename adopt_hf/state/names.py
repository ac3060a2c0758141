"""Pair the parameters of a saved state with those of an optimizer by name, if both sides have names."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

logger = logging.getLogger("adopt_hf")

# Modules that wrappers insert into the name of a parameter: torch.compile, FSDP1, activation checkpointing, DDP.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")

Names = list[list[str]]  # the names of the parameters, one list for each group


def matched(saved: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the saved param groups with their parameters in the order of the groups `here`.

    Names are compared unchanged, then without the modules that wrappers insert, then without the path that all names of
    a side share. Parameters are paired by order, as in torch, if only one side has names or no name is on both sides.
    States of torch.distributed.checkpoint, whose ids are names, and of FSDP1 are in order already.

    Raises:
        ValueError: If the names on the two sides differ, or a parameter is in another group than it was.
    """
    there, ours = _names(saved), _names(here)
    if there is None or ours is None or there == ours:
        return list(saved)
    by_id = any(isinstance(i, str) for group in saved for i in group["params"])
    if by_id or any(_is_fsdp1(group) for group in here):
        return [{**group, "param_names": names} for group, names in zip(saved, ours, strict=False)]
    for form in (lambda names: names, _without_wrappers, _without_common_path):
        if (pairs := _pairs(form(there), form(ours))) is not None:
            return [_in_order(saved, pairs, ours, index) for index in range(len(here))]
    known, asked = (set(_flat(_without_wrappers(names))) for names in (there, ours))
    if not known & asked:
        logger.warning(
            "None of the %d parameter names of the saved optimizer state belongs to this optimizer (saved: %s, here: "
            "%s). The parameters are paired by their order.",
            *(len(known), *sorted(known)[:1], *sorted(asked)[:1]),
        )
        return list(saved)
    raise ValueError(
        "the saved state and this optimizer name different parameters: "
        f"{_some(known - asked)} only in the state, {_some(asked - known)} only here. "
        "Give the optimizer the same parameters, or delete param_names from the groups of the state to pair them by "
        "their order"
    )


def without_wrappers(name: str) -> str:
    """Return the name of a parameter without the modules that wrappers insert into its path."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name


def _names(groups: Sequence[Mapping[str, Any]]) -> Names | None:
    """Return the names of all parameters, or None if a group has none."""
    if not groups or not all("param_names" in group for group in groups):
        return None
    for index, group in enumerate(groups):
        names = group["param_names"]
        if (
            not isinstance(names, list | tuple)
            or len(names) != len(group["params"])
            or not all(isinstance(name, str) for name in names)
        ):
            raise ValueError(
                f"param group {index} of the saved state has param_names {names!r:.200}, which must be a list with the "
                f"names of its {len(group['params'])} parameters"
            )
    return [list(group["param_names"]) for group in groups]


def _is_fsdp1(group: Mapping[str, Any]) -> bool:
    return any(getattr(p, "_fsdp_flattened", False) for p in group["params"])


def _flat(names: Names) -> list[str]:
    return [name for group in names for name in group]


def _mapped(change: Callable[[str], str], names: Names) -> Names:
    return [[change(name) for name in group] for group in names]


def _without_wrappers(names: Names) -> Names:
    return _mapped(without_wrappers, names)


def _without_common_path(names: Names) -> Names:
    names = _without_wrappers(names)
    paths = [name.split(".")[:-1] for name in _flat(names)]
    shared = 0
    while paths and all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return _mapped(lambda name: ".".join(name.split(".")[shared:]), names)


def _pairs(there: Names, ours: Names) -> list[list[int]] | None:
    """Return the position of each parameter in its saved group, or None if the names differ."""
    known = {name: (index, position) for index, group in enumerate(there) for position, name in enumerate(group)}
    asked = _flat(ours)
    if len(known) < len(_flat(there)) or len(set(asked)) < len(asked) or known.keys() != set(asked):
        return None
    for index, group in enumerate(ours):
        for name in group:
            if known[name][0] != index:
                raise ValueError(
                    f"parameter {name} is in param group {index} here and was in group {known[name][0]} when the state "
                    "was saved, with other hyperparameters: create the param groups as they were then"
                )
    return [[known[name][1] for name in group] for group in ours]


def _in_order(saved: Sequence[Mapping[str, Any]], pairs: list[list[int]], ours: Names, index: int) -> Mapping[str, Any]:
    ids = saved[index]["params"]
    return {**saved[index], "params": [ids[position] for position in pairs[index]], "param_names": ours[index]}


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "") if shown else "none"
