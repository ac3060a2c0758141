"""Patches of other packages' private names: each says issue, why, remove when, and is loud when its target changed."""

import copyreg
import functools
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

from packaging.version import Version

TRANSFORMERS_MIN = "5.2"


def transformers_mismatch() -> str | None:
    """Why the patches below do not fit the installed transformers, or None."""
    try:
        installed = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return f"optim='adopt' needs transformers {TRANSFORMERS_MIN} or later, and transformers is not installed"
    if Version(installed) < Version(TRANSFORMERS_MIN):
        return f"optim='adopt' needs transformers {TRANSFORMERS_MIN} or later, installed is {installed}"
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    method = inspect.getattr_static(Trainer, "get_optimizer_cls_and_kwargs", None)
    if not isinstance(method, staticmethod) or list(inspect.signature(method.__func__).parameters) != ["args", "model"]:
        return f"transformers {installed} has changed Trainer.get_optimizer_cls_and_kwargs: adopt_hf must be updated"
    if not hasattr(OptimizerNames, "_value2member_map_"):
        return f"transformers {installed} has changed OptimizerNames: adopt_hf must be updated"
    return None


# -- OptimizerNames: a member for us -----------------------------------------------------------------------------------
# Issue: TrainingArguments turns `optim` into an OptimizerNames, a closed enum; there is no way to add a name.
# Why:   a real member works everywhere a name does: the argument parser, JSON, YAML, pickle, comparison with the text.
# Remove when: transformers lets a package register an optimizer name.


def add_optimizer_name(value: str, reduce: Callable[[Any], Any]) -> None:
    """Make `OptimizerNames(value)` a member; members are pickled by `reduce`."""
    from transformers.training_args import OptimizerNames

    if value in OptimizerNames._value2member_map_:
        return
    name = value.upper()
    member = str.__new__(OptimizerNames, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = OptimizerNames  # type: ignore[attr-defined]
    member._sort_order_ = len(OptimizerNames._member_names_)  # type: ignore[attr-defined]
    type.__setattr__(OptimizerNames, name, member)
    OptimizerNames._member_names_.append(name)
    OptimizerNames._member_map_[name] = member
    OptimizerNames._value2member_map_[value] = member
    copyreg.pickle(OptimizerNames, reduce)


def remove_optimizer_name(value: str) -> None:
    """Undo `add_optimizer_name`."""
    from transformers.training_args import OptimizerNames

    member = OptimizerNames._value2member_map_.pop(value, None)
    if member is not None:
        name = member._name_
        type.__delattr__(OptimizerNames, name)
        OptimizerNames._member_names_.remove(name)
        del OptimizerNames._member_map_[name]
        copyreg.dispatch_table.pop(OptimizerNames, None)


def explain_optimizer_name(value: str, reason: str) -> None:
    """Let `OptimizerNames(value)` raise ImportError(reason); every other unknown name fails as before."""
    from transformers.training_args import OptimizerNames

    original: Any = OptimizerNames._missing_

    def _missing_(cls: Any, missing: object) -> Any:
        if missing == value:
            raise ImportError(reason)
        return original(missing)

    type.__setattr__(OptimizerNames, "_missing_", classmethod(_missing_))
    # A choice of the argument parser, which lists the members, but no member that `OptimizerNames(value)` finds.
    member = str.__new__(OptimizerNames, value)
    member._name_, member._value_ = value.upper(), value
    OptimizerNames._member_names_.append(member._name_)
    OptimizerNames._member_map_[member._name_] = member


# -- Trainer.get_optimizer_cls_and_kwargs: an optimizer for our name ---------------------------------------------------
# Issue: the name is looked up in a private table, after a private parser has split `optim_args` at every comma and
#        equals sign: `betas=(0.9,0.99)`, a trailing comma or a missing value die there with "not enough values".
# Why:   in front of both, our own parser can read the text and say what is wrong with it.
# Remove when: transformers lets a package register an optimizer and hands it the text.

OptimizerFactory = Callable[[Any, Any], tuple[type, dict[str, Any]]]


def wrap_trainer_optimizers(value: str, factory: OptimizerFactory) -> None:
    """Let the Trainer take `factory(args, model)` where `args.optim == value`."""
    from transformers import Trainer

    original = inspect.getattr_static(Trainer, "get_optimizer_cls_and_kwargs")
    if getattr(original.__func__, "_adopt_hf_wraps", None) is not None:
        return

    @functools.wraps(original.__func__)
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> Any:
        return factory(args, model) if args.optim == value else original.__func__(args, model)

    get_optimizer_cls_and_kwargs._adopt_hf_wraps = original  # type: ignore[attr-defined]
    Trainer.get_optimizer_cls_and_kwargs = staticmethod(get_optimizer_cls_and_kwargs)  # type: ignore[method-assign]


def unwrap_trainer_optimizers() -> None:
    """Undo `wrap_trainer_optimizers`. RuntimeError if somebody else has wrapped the method since."""
    from transformers import Trainer

    wrapped = inspect.getattr_static(Trainer, "get_optimizer_cls_and_kwargs").__func__
    original = getattr(wrapped, "_adopt_hf_wraps", None)
    if original is None:
        return
    if wrapped.__code__.co_filename != __file__:  # functools.wraps has copied our mark to another's function
        raise RuntimeError("somebody else has wrapped Trainer.get_optimizer_cls_and_kwargs since: undo that first")
    Trainer.get_optimizer_cls_and_kwargs = original  # type: ignore[method-assign]
