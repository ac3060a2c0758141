"""ADOPT's names in `transformers.TrainingArguments`: members of an enum, or errors that say why there are none."""

import copyreg
import enum
import logging
import sys
from collections.abc import Callable
from typing import Any

from adopt_hf.integrations.transformers import ARGUMENTS, HANDLERS

NAME = "adopt"
EIGHT_BITS, LAYERWISE = "adopt_8bit", "adopt_layerwise"
NAMES = (NAME, EIGHT_BITS, LAYERWISE)
registered: set[str] = set()  # those that mean this package's ADOPT; transformers may have one itself
_check: Callable[[], None] | None = None  # called before a name is used

logger = logging.getLogger("adopt_hf")


def add_names(check: Callable[[], None]) -> None:
    """Make `TrainingArguments(optim="adopt")` and `--optim adopt` mean ADOPT.

    Args:
        check: Called before a name is used. It raises ImportError if ADOPT cannot be used.
    """
    global _check
    _check = check
    for name in NAMES:
        if add_to_registry(name) or add_optimizer_name(name):
            registered.add(name)


def settle_names() -> None:
    """Find out what builds the names that transformers has itself. The Trainer has been imported.

    A handler of transformers that imports adopt_hf builds the same ADOPT. Such a name counts as registered. Another one
    keeps the optimizer of transformers, and a warning says so.
    """
    handlers = getattr(sys.modules.get(HANDLERS), "_OPTIMIZER_HANDLERS", {})
    for name in NAMES:
        if name in registered or not is_of_transformers(name):
            continue
        if builds_adopt_hf(handlers.get(name)):
            registered.add(name)
        else:
            logger.warning(
                "transformers has optim=%r itself: that name builds the optimizer of transformers, and not adopt_hf's. "
                "For adopt_hf's write Trainer(optimizer_cls_and_kwargs=adopt_hf.trainer_kwargs(args))",
                name,
            )


def builds_adopt_hf(handler: Any) -> bool:
    """Return whether a function that makes an optimizer for the Trainer imports adopt_hf."""
    return "adopt_hf" in getattr(getattr(handler, "__code__", None), "co_names", ())


def before_use(optim: Any) -> None:
    """Check that the Trainer fits, before the field `optim` is given the value `optim`.

    Raises:
        ImportError: If the value is one of the names, and ADOPT cannot be used.
    """
    if optim in NAMES and _check is not None:
        _check()


def explain_names(reason: str) -> None:
    """Make every use of the names raise ImportError(reason). This replaces what `add_names` has made of them."""
    registered.clear()
    for name in NAMES:
        remove_from_registry(name)
        remove_optimizer_name(name)
        explain_optimizer_name(name, reason)


def has_name(argument: Any) -> bool:
    """Return whether `argument` is TrainingArguments with one of the names."""
    return getattr(argument, "optim", None) in NAMES


def remove_names() -> None:
    """Undo `add_names` and `explain_names`. The patches of the Trainer stay."""
    for name in NAMES:
        remove_from_registry(name)
        remove_optimizer_name(name)
    registered.clear()


def _reduce_optimizer_name(member: Any) -> tuple[Any, tuple[str]]:
    """Return how an OptimizerNames is pickled: unpickling a name of ours imports this package, which registers it."""
    return (_optimizer_name if member.value in registered else type(member)), (member.value,)


def _optimizer_name(value: str) -> Any:
    from transformers.training_args import OptimizerNames

    return value if is_in_registry(value) else OptimizerNames(value)


# -- register_optimizer: the extension point of docs/upstream/transformers-register-optimizer --------------------------


def build(context: Any) -> tuple[Any, dict[str, Any]]:
    """Return the optimizer class and its arguments to a Trainer that has looked the name up in its registry."""
    from adopt_hf.integrations.transformers.arguments import trainer_kwargs  # imports this module

    return trainer_kwargs(context.args, context.model)


def add_to_registry(value: str) -> bool:
    """Register the name with transformers, and return whether it is registered.

    It is not if this transformers has no registry, or has the name itself.
    """
    if _registry() is None or is_of_transformers(value):
        return False
    sys.modules[ARGUMENTS].register_optimizer(value, build)
    return True


def remove_from_registry(value: str) -> None:
    """Undo `add_to_registry`, also that of another copy of this module."""
    if is_in_registry(value):
        del sys.modules[ARGUMENTS].REGISTERED_OPTIMIZERS[value]


def is_in_registry(value: str) -> bool:
    """Return whether transformers has a registry with this name, of this module or another copy of it."""
    registered_there = (_registry() or {}).get(value)
    return registered_there is not None and registered_there.__module__ == __name__


def all_in_registry() -> bool:
    """Return whether the registry of transformers has all names, so that no function has to be replaced for them."""
    return all(map(is_in_registry, NAMES))


def _registry() -> dict[str, Any] | None:
    registry = getattr(sys.modules.get(ARGUMENTS), "REGISTERED_OPTIMIZERS", None)
    return registry if isinstance(registry, dict) else None


# -- OptimizerNames: a member for us -----------------------------------------------------------------------------------
# Issue: TrainingArguments turns `optim` into an OptimizerNames, a closed enum (transformers 5.2 to 5.24).
# Why:   a real member works wherever a name does: the argument parser, JSON, YAML, pickle, comparison with the text.
# Remove when: transformers lets a package register an optimizer name.


def add_optimizer_name(value: str) -> bool:
    """Make `OptimizerNames(value)` a member.

    Returns:
        Whether the member is this package's. If transformers has the name itself, its own member stays.
    """
    from transformers.training_args import OptimizerNames

    member = OptimizerNames._value2member_map_.get(value)
    if member is None:
        remove_optimizer_name(value)  # one that raised the reason
        member = _new_member(value)
        OptimizerNames._value2member_map_[value] = member
        type.__setattr__(OptimizerNames, member._name_, member)
    elif not _is_added(member):
        return False
    copyreg.pickle(OptimizerNames, _reduce_optimizer_name)  # also in place of another copy of this module
    return True


def _new_member(value: str) -> Any:
    """Return a member that iteration over OptimizerNames shows, and that `OptimizerNames(value)` does not find yet."""
    from transformers.training_args import OptimizerNames

    member: Any = str.__new__(OptimizerNames, value)
    member._name_, member._value_ = value.upper(), value
    member.__objclass__ = OptimizerNames
    member._sort_order_ = len(OptimizerNames._member_names_)
    member._adopt_hf_added = True
    OptimizerNames._member_names_.append(member._name_)
    OptimizerNames._member_map_[member._name_] = member
    return member


def has_optimizer_names() -> bool:
    """Return whether OptimizerNames exists, and is the kind of enum that this module changes."""
    names = getattr(sys.modules.get(ARGUMENTS), "OptimizerNames", None)  # a test may have put a stand-in there
    return isinstance(names, enum.EnumMeta) and hasattr(names, "_value2member_map_")


def is_of_transformers(value: str) -> bool:
    """Return whether transformers has the name itself."""
    from transformers.training_args import OptimizerNames

    member = OptimizerNames._value2member_map_.get(value)
    return member is not None and not _is_added(member)


def _is_added(member: Any) -> bool:
    return getattr(member, "_adopt_hf_added", False)


def remove_optimizer_name(value: str) -> None:
    """Undo `add_optimizer_name` and `explain_optimizer_name`. A name that transformers has itself stays."""
    if not has_optimizer_names():
        return
    from transformers.training_args import OptimizerNames

    member: Any = OptimizerNames._member_map_.get(value.upper())
    if not _is_added(member):
        return
    name = member._name_
    OptimizerNames._member_names_.remove(name)
    del OptimizerNames._member_map_[name]
    if OptimizerNames._value2member_map_.pop(value, None) is not None:
        type.__delattr__(OptimizerNames, name)
    if not any(map(_is_added, OptimizerNames._member_map_.values())):
        copyreg.dispatch_table.pop(OptimizerNames, None)
    explained: Any = vars(OptimizerNames).get("_missing_")
    if hasattr(explained, "_adopt_hf_reasons"):
        explained._adopt_hf_reasons.pop(value, None)
        if not explained._adopt_hf_reasons:
            type.__delattr__(OptimizerNames, "_missing_")


def explain_optimizer_name(value: str, reason: str) -> None:
    """Make `OptimizerNames(value)` raise ImportError(reason), unless transformers has the name itself.

    Every other unknown name fails as before.
    """
    from transformers.training_args import OptimizerNames

    if value.upper() in OptimizerNames._member_map_:
        return
    _new_member(value)  # a choice of the argument parser, which lists the members
    original: Any = vars(OptimizerNames).get("_missing_")
    if hasattr(original, "_adopt_hf_reasons"):
        original._adopt_hf_reasons[value] = reason
        return
    reasons: dict[object, str] = {value: reason}
    inherited: Any = OptimizerNames._missing_

    def _missing_(cls: Any, missing: object) -> Any:
        if missing in reasons:
            raise ImportError(reasons[missing])
        return inherited(missing)

    explained: Any = classmethod(_missing_)
    explained._adopt_hf_reasons = reasons
    type.__setattr__(OptimizerNames, "_missing_", explained)
