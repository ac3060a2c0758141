"""Warn of hyperparameters that a load has changed: the loaded values replace those of the optimizer."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from adopt_hf.hyperparameters import of_group

logger = logging.getLogger("adopt_hf")
NAMES = of_group("update")
_told: set[str] = set()  # messages of this process, each logged once


def numbers(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the hyperparameters of each param group, as plain numbers.

    Under a schedule `lr` is the schedule's initial value, because the present value changes with every step.
    """
    return [
        {name: _plain(group.get("initial_lr", group["lr"]) if name == "lr" else group.get(name)) for name in NAMES}
        | {"is_scheduled": "initial_lr" in group, "cycles_beta1": "max_momentum" in group}
        for group in groups
    ]


def warn(before: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Warn of hyperparameters that differ between `before`, the `numbers` before a load, and `groups` after it."""
    found: dict[str, list[int]] = {}
    of_a_schedule = False
    for index, (old, new) in enumerate(zip(before, numbers(groups), strict=False)):
        differ = [name for name in NAMES if not _equal(name, old, new)]
        of_a_schedule |= "lr" in differ and old["is_scheduled"]
        if differ:
            text = ", ".join(f"{name}={new[name]} (and not {old[name]})" for name in differ)
            found.setdefault(text, []).append(index)
    if not found:
        return
    where = {
        text: f"param group{'s' * (len(all_of) > 1)} {', '.join(map(str, all_of))}" for text, all_of in found.items()
    }
    message = (
        "The loaded state has other hyperparameters than this optimizer had, and the loaded ones are used from now on: "
        f"{'; '.join(f'{text} in {where[text]}' for text in found)}. To use the others, write them into "
        "optimizer.param_groups after the load (under the Trainer, in on_train_begin of a callback)"
        f"{'; a schedule that is not loaded as well goes on with its own lr' if of_a_schedule else ''}"
    )
    if message not in _told:
        _told.add(message)
        logger.warning(message)


def _equal(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if name == "betas" and (old["cycles_beta1"] or new["cycles_beta1"]):  # OneCycleLR writes a new beta1 at every step
        return bool(old["betas"][1] == new["betas"][1])
    return bool(old[name] == new[name])


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None if value.is_meta else float(value)
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
