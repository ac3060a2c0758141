"""Patches of other packages' names: each says issue, why, remove when, and is loud when its target has changed."""

import copyreg
import enum
import functools
import glob
import importlib.metadata
import inspect
import os
import sys
import weakref
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

TRANSFORMERS_MIN = "5.2"
DEEPSPEED_MIN = "0.17"
ACCELERATE_MIN = "1.10"


# -- How a patch is put in place and taken back ------------------------------------------------------------------------

Around = Callable[..., Any]  # around(original, *args, **kwargs): what is called in the place of the original


def wrap(owner: Any, name: str, around: Around) -> None:
    """Let `owner.name(...)` be `around(original, ...)`, for a function, a method or a static method. Twice is once.

    The wrapper of another copy of this module (of a notebook or a test runner that imports it again) is replaced.
    """
    found = inspect.getattr_static(owner, name)
    original: Any = found.__func__ if isinstance(found, staticmethod) else found
    if getattr(original, "_adopt_hf_wraps", None) is not None:
        if original.__code__.co_filename != __file__ or original.__globals__ is globals():
            return
        found = original._adopt_hf_wraps
        original = found.__func__ if isinstance(found, staticmethod) else found

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    wrapper._adopt_hf_wraps = found  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(wrapper) if isinstance(found, staticmethod) else wrapper)


def unwrap(owner: Any, name: str) -> None:
    """Undo `wrap`. RuntimeError if another library has wrapped the function since."""
    found = inspect.getattr_static(owner, name, None)
    wrapper = found.__func__ if isinstance(found, staticmethod) else found
    original = getattr(wrapper, "_adopt_hf_wraps", None)
    if original is None:
        return
    if wrapper.__code__.co_filename != __file__:  # functools.wraps has copied our mark to another's function
        raise RuntimeError(f"somebody else has wrapped {owner.__name__}.{name} since: undo that first")
    if any(vars(base).get(name) is original for base in getattr(owner, "__mro__", ())[1:]):
        delattr(owner, name)  # inherited
    else:
        setattr(owner, name, original)


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _is_older(installed: str, minimum: str) -> bool:
    from packaging.version import Version  # transformers, Accelerate and DeepSpeed depend on it, torch does not

    return Version(installed) < Version(minimum)


def import_failure(*modules: str) -> str | None:
    """Import `modules`. Return what went wrong, in one line, or None."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001  a dependency of another package can raise anything when it is imported
            return failure_of(module, error)
    return None


def failure_of(module: str, error: BaseException) -> str:
    """Return one line on the error that ended the import of `module`."""
    while error.__cause__ is not None:  # transformers wraps the error of a dependency in one of its own
        error = error.__cause__
    return f"{module} cannot be imported ({' '.join(f'{type(error).__name__}: {error}'.split())})"


def _parameters(owner: Any, name: str) -> list[str]:
    """The names of the parameters of `owner.name`; none if there is no such function."""
    function = getattr(owner, name, None)
    return list(inspect.signature(function).parameters) if inspect.isroutine(function) else []


# -- Which transformers the patches below fit --------------------------------------------------------------------------

ARGUMENTS, DEEPSPEED, TRAINER = (
    "transformers.training_args",
    "transformers.integrations.deepspeed",
    "transformers.trainer",
)


def transformers_mismatch() -> str | None:
    """Why the patches below do not fit the installed transformers, or None. Imports the Trainer."""
    reason = _version_mismatch()
    if reason:
        return reason
    failure = import_failure(*CHANGED)
    if failure:
        return cannot_be_imported(failure)
    return next(filter(None, map(module_mismatch, CHANGED)), None)


def cannot_be_imported(failure: str) -> str:
    """Why ADOPT cannot be used, if `failure` says which module of transformers cannot be imported."""
    reason = _version_mismatch()
    return reason or f"optim='adopt' needs the Trainer of transformers {_version('transformers')}, and {failure}"


def module_mismatch(module: str) -> str | None:
    """Why the patches of one of the three modules, which has been executed, do not fit it, or None. Imports nothing."""
    reason = _version_mismatch()
    if reason:
        return reason
    changed = CHANGED[module](sys.modules[module])
    if changed is None:
        return None
    return f"transformers {_version('transformers')} has changed {changed}: adopt_hf must be updated"


def _version_mismatch() -> str | None:
    try:
        installed = _version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return f"optim='adopt' needs transformers {TRANSFORMERS_MIN} or later, and transformers is not installed"
    if _is_older(installed, TRANSFORMERS_MIN):
        return f"optim='adopt' needs transformers {TRANSFORMERS_MIN} or later, installed is {installed}"
    return None


def _changed_arguments(module: Any) -> str | None:
    if not has_optimizer_names():
        return "OptimizerNames"
    arguments = getattr(module, "TrainingArguments", None)
    if not {"beta1", "beta2", "epsilon"} <= set(_parameters(arguments, "set_optimizer")):
        return "TrainingArguments.set_optimizer"
    return None


def _changed_trainer(module: Any) -> str | None:
    trainer = getattr(module, "Trainer", None)
    method = inspect.getattr_static(trainer, "get_optimizer_cls_and_kwargs", None)
    if not isinstance(method, staticmethod) or list(inspect.signature(method.__func__).parameters) != ["args", "model"]:
        return "Trainer.get_optimizer_cls_and_kwargs"
    for name, first in (("_load_from_checkpoint", ["self", "resume_from_checkpoint"]), ("_load_best_model", ["self"])):
        if _parameters(trainer, name)[: len(first)] != first:
            return f"Trainer.{name}"
    return None if _parameters(module, "deepspeed_init")[:1] == ["trainer"] else "deepspeed_init for DeepSpeed"


def _changed_deepspeed(module: Any) -> str | None:
    for owner, name, first in (
        (getattr(module, "HfTrainerDeepSpeedConfig", None), "trainer_config_process", ["self", "args"]),
        (module, "deepspeed_optim_sched", ["trainer", "hf_deepspeed_config"]),
    ):
        if _parameters(owner, name)[: len(first)] != first:
            return f"{name} for DeepSpeed"
    return None


CHANGED: dict[str, Callable[[Any], str | None]] = {  # module -> what the patches rely on and it has changed
    ARGUMENTS: _changed_arguments,
    TRAINER: _changed_trainer,
    DEEPSPEED: _changed_deepspeed,
}


def _in(module: str, name: str) -> Any:
    """Return `name` of a module, or None if one of them is not there: a test may have put a stand-in in its place."""
    return getattr(sys.modules.get(module), name, None)


# -- OptimizerNames: a member for us -----------------------------------------------------------------------------------
# Issue: TrainingArguments turns `optim` into an OptimizerNames, a closed enum; there is no way to add a name.
# Why:   a real member works everywhere a name does: the argument parser, JSON, YAML, pickle, comparison with the text.
# Remove when: transformers lets a package register an optimizer name.


def add_optimizer_name(value: str, reduce: Callable[[Any], Any]) -> bool:
    """Make `OptimizerNames(value)` a member; members are pickled by `reduce`.

    Returns:
        Whether the member is this package's. If transformers has the name itself, its own is left as it is.
    """
    from transformers.training_args import OptimizerNames

    member = OptimizerNames._value2member_map_.get(value)
    if member is None:
        remove_optimizer_name(value)  # which only explained itself until now
        member = _new_member(value)
        OptimizerNames._value2member_map_[value] = member
        type.__setattr__(OptimizerNames, member._name_, member)
    elif not _is_added(member):
        return False
    copyreg.pickle(OptimizerNames, reduce)  # again for a member of another copy of this module
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
    """Whether OptimizerNames is there, and is the enum that it was."""
    names = _in(ARGUMENTS, "OptimizerNames")
    return isinstance(names, enum.EnumMeta) and hasattr(names, "_value2member_map_")


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
    """Let `OptimizerNames(value)` raise ImportError(reason), unless transformers has the name itself.

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


# -- Trainer.get_optimizer_cls_and_kwargs: an optimizer for our name ---------------------------------------------------
# Issue: the name is looked up in a private table, after a private parser has split `optim_args` at every comma and
#        equals sign: `betas=(0.9,0.99)`, a trailing comma or a missing value die there with "not enough values".
# Why:   in front of both, our own parser can read the text and say what is wrong with it.
# Remove when: transformers lets a package register an optimizer and hands it the text.

OptimizerFactory = Callable[[Any, Any], tuple[type, dict[str, Any]]]


def wrap_trainer_optimizers(values: Collection[str], factory: OptimizerFactory) -> None:
    """Let the Trainer take `factory(args, model)` where `args.optim` is one of `values`."""
    from transformers.trainer import Trainer

    def get_optimizer_cls_and_kwargs(original: Any, args: Any, model: Any = None) -> Any:
        return factory(args, model) if args.optim in values else original(args, model)

    wrap(Trainer, "get_optimizer_cls_and_kwargs", get_optimizer_cls_and_kwargs)


def refuse_trainer_optimizers(values: Collection[str], reason: str) -> None:
    """Where the patches do not fit: let the Trainer, if it is imported, raise ImportError for arguments with `values`.

    Such arguments were made, or unpickled, before the Trainer was imported.
    """
    trainer = _in(TRAINER, "Trainer")

    def refuse(original: Any, *args: Any, **kwargs: Any) -> Any:
        if any(getattr(argument, "optim", None) in values for argument in (*args, *kwargs.values())):
            raise ImportError(reason)
        return original(*args, **kwargs)

    if inspect.isroutine(getattr(trainer, "get_optimizer_cls_and_kwargs", None)):
        wrap(trainer, "get_optimizer_cls_and_kwargs", refuse)


def unwrap_trainer_optimizers() -> None:
    """Undo the last two. RuntimeError if another library has wrapped the method since."""
    unwrap(_in(TRAINER, "Trainer"), "get_optimizer_cls_and_kwargs")


# -- Optimizer.load_state_dict: ADOPT's state in another optimizer -----------------------------------------------------
# Issue: Adam, AdamW and whatever has states of these names take ADOPT's without a word, and the next step moves the
#        weights by thousands of learning rates.
# Why:   the Trainer, Accelerate, TRL, FSDP and distributed checkpoints all end in this public method. No form of the
#        state stops Adam that older checkpoints and DCP can be read with (docs/integrations.md, "Another optimizer").
# Remove when: torch's optimizers ask which optimizer a state is of.


def wrap_optimizer_load(around: Around) -> None:
    """Put `around` around `torch.optim.Optimizer.load_state_dict`."""
    wrap(torch.optim.Optimizer, "load_state_dict", around)


def unwrap_optimizer_load() -> None:
    """Undo `wrap_optimizer_load`. RuntimeError if another library has wrapped the method since."""
    unwrap(torch.optim.Optimizer, "load_state_dict")


# -- AcceleratedOptimizer.load_state_dict: the same, for classes with a method of their own ----------------------------
# Issue: bitsandbytes' optimizers do not call torch's method.
# Why:   the Trainer and Accelerate load every optimizer through this wrapper of theirs.
# Remove when: the one above is removed.


def wrap_accelerated_load(around: Around) -> None:
    """Put `around` around `AcceleratedOptimizer.load_state_dict`, if there is such a method."""
    owner = _accelerated_optimizer()
    if owner is not None:
        wrap(owner, "load_state_dict", around)


def unwrap_accelerated_load() -> None:
    """Undo `wrap_accelerated_load`."""
    owner = _accelerated_optimizer()
    if owner is not None:
        unwrap(owner, "load_state_dict")


def _accelerated_optimizer() -> Any:
    """Return the class of which Accelerate makes prepared optimizers, or None for a stand-in of the package."""
    return getattr(sys.modules.get("accelerate.optimizer"), "AcceleratedOptimizer", None)


# -- load_fsdp_optimizer: which optimizer a checkpoint of FSDP is of ---------------------------------------------------
# Issue: torch's distributed checkpoints die with a KeyError of a name in the param groups when the state is another
#        optimizer's.
# Why:   both callers, the Trainer and `Accelerator.load_state`, have imported this public function by name.
# Remove when: torch says there which optimizer it is.


def wrap_fsdp_load(module: str, around: Around) -> None:
    """Put `around` around the `load_fsdp_optimizer` that `module`, if it is imported, calls."""
    if hasattr(sys.modules.get(module), "load_fsdp_optimizer"):
        wrap(sys.modules[module], "load_fsdp_optimizer", around)


def unwrap_fsdp_load(module: str) -> None:
    """Undo `wrap_fsdp_load`."""
    if hasattr(sys.modules.get(module), "load_fsdp_optimizer"):
        unwrap(sys.modules[module], "load_fsdp_optimizer")


# -- TrainingArguments.__setattr__, set_optimizer: which fields were set -----------------------------------------------
# Issue: they hold Adam's defaults, and do not say whether a user has set one. A trial of `hyperparameter_search` that
#        sets adam_beta2=0.999 looks like arguments in which nothing was set.
# Why:   trials and users assign fields after construction, which can be seen here.
# Remove when: TrainingArguments say which fields were set, or an optimizer can have defaults of its own.


def wrap_training_arguments(assign: Around, set_optimizer: Around) -> None:
    """Put them around `TrainingArguments.__setattr__` and `TrainingArguments.set_optimizer`."""
    from transformers.training_args import TrainingArguments

    wrap(TrainingArguments, "__setattr__", assign)
    wrap(TrainingArguments, "set_optimizer", set_optimizer)


def unwrap_training_arguments() -> None:
    """Undo `wrap_training_arguments`. RuntimeError if another package has wrapped a method since."""
    unwrap(_in(ARGUMENTS, "TrainingArguments"), "__setattr__")
    unwrap(_in(ARGUMENTS, "TrainingArguments"), "set_optimizer")


# -- Trainer._load_from_checkpoint, _load_best_model: the precision of an adapter that is loaded -----------------------
# Issue: they call `PeftModel.load_adapter` with its default, autocast_adapter_dtype=True, which replaces the 16-bit
#        parameters of an adapter by new ones in float32: the run goes on in another precision, and an optimizer that
#        was made before holds the old ones.
#        And the second has DeepSpeed load all of the best checkpoint, which of an optimizer on NVMe brings back a part
#        of the state and no weights.
# Why:   the weights are loaded there and nowhere else; who calls it has no say in the arguments.
# Remove when: the Trainer loads into the adapter that is there, as it is.


TRAINER_LOADS = ("_load_from_checkpoint", "_load_best_model")


def wrap_trainer_load(around: Around) -> None:
    """Put `around` around the Trainer's methods that load an adapter."""
    from transformers.trainer import Trainer

    for name in TRAINER_LOADS:
        wrap(Trainer, name, around)


def unwrap_trainer_load() -> None:
    """Undo `wrap_trainer_load`. RuntimeError if another library has wrapped one of the methods since."""
    for name in TRAINER_LOADS:
        unwrap(_in(TRAINER, "Trainer"), name)


# -- HfTrainerDeepSpeedConfig.trainer_config_process: the Trainer's values in a DeepSpeed config -----------------------
# Issue: it fills "auto" with Adam's betas and eps, calls ADOPT's own a mismatch, and with an "optimizer" block of any
#        type the Trainer no longer asks what `optim` says.
# Why:   every DeepSpeed config passes here, from TrainingArguments and from the launcher, before anything is built.
# Remove when: transformers lets a registered optimizer fill its own block.
#
# -- deepspeed_optim_sched: the parameters of an optimizer that DeepSpeed builds ---------------------------------------
# Issue: all parameters go into one group, so that biases and norms are decayed.
# Why:   here the Trainer hands them over.
# Remove when: transformers makes the decay groups for DeepSpeed's optimizers too.


#
# -- deepspeed_init: what the Trainer was given ------------------------------------------------------------------------
# Issue: an optimizer or a class that was handed to the Trainer is dropped, and with an "optimizer" block in the
#        DeepSpeed config the block's trains instead; nobody is told.
# Why:   it is the last place that knows both.
# Remove when: transformers raises there.


def wrap_trainer_deepspeed(process: Around, optim_sched: Around) -> None:
    """Put them around `trainer_config_process` and `deepspeed_optim_sched`."""
    wrap(_in(DEEPSPEED, "HfTrainerDeepSpeedConfig"), "trainer_config_process", process)
    wrap(sys.modules[DEEPSPEED], "deepspeed_optim_sched", optim_sched)


def unwrap_trainer_deepspeed() -> None:
    """Undo `wrap_trainer_deepspeed`."""
    unwrap(_in(DEEPSPEED, "HfTrainerDeepSpeedConfig"), "trainer_config_process")
    unwrap(sys.modules[DEEPSPEED], "deepspeed_optim_sched")


def wrap_deepspeed_init(init: Around) -> None:
    """Put `init` around the `deepspeed_init` that the Trainer calls. It has imported it by name."""
    wrap(sys.modules[TRAINER], "deepspeed_init", init)


def unwrap_deepspeed_init() -> None:
    """Undo `wrap_deepspeed_init`."""
    unwrap(sys.modules[TRAINER], "deepspeed_init")


# -- Accelerator.prepare: ADOPT stays ADOPT under ZeRO-Offload ---------------------------------------------------------
# Issue: where the DeepSpeed config offloads the optimizer, Accelerate replaces every optimizer that it does not know by
#        DeepSpeedCPUAdam, without a word.
# Why:   `prepare` is the public method in which it happens; in front of it the config can still say no.
# Remove when: Accelerate keeps the optimizer that it was given, or raises.


def accelerate_mismatch() -> str | None:
    """Why ADOPT cannot be kept by the imported Accelerate, or None."""
    import accelerate

    installed = getattr(accelerate, "__version__", "of unknown version")
    if "self" not in _parameters(getattr(accelerate, "Accelerator", None), "prepare"):
        return f"accelerate {installed} has changed Accelerator.prepare: adopt_hf must be updated"
    if _is_older(installed, ACCELERATE_MIN):
        return f"ADOPT needs accelerate {ACCELERATE_MIN} or later, installed is {installed}"
    return None


def wrap_accelerator_prepare(around: Around) -> None:
    """Put `around` around `Accelerator.prepare`, if there is such a method."""
    import accelerate

    if hasattr(accelerate, "Accelerator") and hasattr(accelerate.Accelerator, "prepare"):
        wrap(accelerate.Accelerator, "prepare", around)


def unwrap_accelerator_prepare() -> None:
    """Undo `wrap_accelerator_prepare`."""
    import accelerate

    if hasattr(accelerate, "Accelerator") and hasattr(accelerate.Accelerator, "prepare"):
        unwrap(accelerate.Accelerator, "prepare")


# -- deepspeed.initialize: ADOPT in the config, under ZeRO and offloaded -----------------------------------------------
# Issue: an "optimizer" block can only name classes of torch.optim and DeepSpeed's own; a client's optimizer is refused
#        under offload unless a flag is set, and what ZeRO flattens has lost its tensors.
# Why:   `initialize` is public and everything passes through it, Accelerate and the Trainer included.
# Remove when: DeepSpeed can be told of an optimizer class.
#
# -- ZERO_SUPPORTED_OPTIMIZERS: the list of classes that ZeRO calls tested ---------------------------------------------
# Issue: other classes need "zero_allow_untested_optimizer" in the config, and are warned of.
# Why:   the tests here run ADOPT in every stage.
# Remove when: DeepSpeed has ADOPT in the list, or none.
#
# -- DeepSpeedEngine: its constructor, save_checkpoint, load_checkpoint ------------------------------------------------
# Issue: an engine's optimizer is not told of the model's tensors, a universal checkpoint does not keep what belongs to
#        single tensors and groups, and the error about another world size does not say what to do about it.
# Why:   every engine is made, saved and loaded here, whoever calls `initialize`, and however it was imported.
# Remove when: DeepSpeed tells an optimizer what its partitions hold, and converts its state.


def deepspeed_mismatch() -> str | None:
    """Why the patches below do not fit the installed DeepSpeed, or None. Imports it."""
    import deepspeed

    installed = getattr(deepspeed, "__version__", "of unknown version")
    ours = {"model", "optimizer", "model_parameters", "config", "config_params"}
    if not ours.issubset(_parameters(deepspeed, "initialize")):
        return f"deepspeed {installed} has changed deepspeed.initialize: adopt_hf must be updated"
    if _is_older(installed, DEEPSPEED_MIN):
        return f"ADOPT under DeepSpeed needs deepspeed {DEEPSPEED_MIN} or later, installed is {installed}"
    from deepspeed.runtime.zero import utils

    if not isinstance(getattr(utils, "ZERO_SUPPORTED_OPTIMIZERS", None), list):
        return f"deepspeed {installed} has changed ZERO_SUPPORTED_OPTIMIZERS: adopt_hf must be updated"
    for name, parameters in (("save_checkpoint", {"save_dir"}), ("load_checkpoint", {"load_dir", "tag"})):
        if not parameters.issubset(_parameters(deepspeed.DeepSpeedEngine, name)):
            return f"deepspeed {installed} has changed DeepSpeedEngine.{name}: adopt_hf must be updated"
    return None


def wrap_deepspeed(
    optimizer_classes: Iterable[type],
    initialize: Around,
    engine: Around,
    save_checkpoint: Around,
    load_checkpoint: Around,
) -> None:
    """Put them around `deepspeed.initialize` and the engine's methods; let ZeRO support the classes."""
    import deepspeed

    for optimizer_class in optimizer_classes:
        support_in_zero(optimizer_class)
    wrap(deepspeed, "initialize", initialize)
    wrap(deepspeed.DeepSpeedEngine, "__init__", engine)
    wrap(deepspeed.DeepSpeedEngine, "save_checkpoint", save_checkpoint)
    wrap(deepspeed.DeepSpeedEngine, "load_checkpoint", load_checkpoint)


# -- OneCycle.__init__ -------------------------------------------------------------------------------------------------
# Issue: unless it is told not to, it writes beta2 = 0.99 into every group that has betas, and lets beta1 grow above 1.
# Why:   a "scheduler" block, a scheduler that is handed over and one in a loop of one's own are all made here.
# Remove when: DeepSpeed cycles the first of the betas only.
#
# -- DeepSpeedEngine.offload_states ------------------------------------------------------------------------------------
# Issue: stage 3 asserts that the optimizer is FusedAdam, which `python -O` does not do.
# Why:   it is the public method.
# Remove when: stage 3 moves the state of any optimizer, as stages 1 and 2 do.


def wrap_deepspeed_adams(one_cycle: Around, offload_states: Around) -> None:
    """Put them around what DeepSpeed has written for Adam, as far as this version has it."""
    import deepspeed
    from deepspeed.runtime import lr_schedules

    if "cycle_momentum" in _parameters(getattr(lr_schedules, "OneCycle", None), "__init__"):
        wrap(lr_schedules.OneCycle, "__init__", one_cycle)
    if "include" in _parameters(deepspeed.DeepSpeedEngine, "offload_states"):
        wrap(deepspeed.DeepSpeedEngine, "offload_states", offload_states)


def unwrap_deepspeed_adams() -> None:
    """Undo `wrap_deepspeed_adams`."""
    import deepspeed
    from deepspeed.runtime import lr_schedules

    for owner, name in (
        (getattr(lr_schedules, "OneCycle", None), "__init__"),
        (deepspeed.DeepSpeedEngine, "offload_states"),
    ):
        if hasattr(owner, name):
            unwrap(owner, name)


def states_of_fused_adam(engine: Any, include: Any) -> list[str]:
    """Return those of the states that `offload_states` is to move which stage 3 only moves for FusedAdam."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as Kind

    if engine.zero_use_cpu_optimizer():  # they are on the CPU, and left out
        return []
    return [kind.value for kind in (Kind.optim_states, Kind.hp_params) if include is None or kind in include]


def support_in_zero(optimizer_class: type) -> None:
    """Let ZeRO call the class tested; it asks for the very class, and not for those it is derived from."""
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    if optimizer_class not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(optimizer_class)


def wrap_deepspeed_to_refuse(initialize: Around) -> None:
    """Where the patches do not fit: put only this around `deepspeed.initialize`, if there is one."""
    import deepspeed

    if hasattr(deepspeed, "initialize"):
        wrap(deepspeed, "initialize", initialize)


def unwrap_deepspeed(is_ours: Callable[[object], bool]) -> None:
    """Undo `wrap_deepspeed`, `wrap_deepspeed_to_refuse` and `support_in_zero` for the classes that are ours."""
    import deepspeed
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    ZERO_SUPPORTED_OPTIMIZERS[:] = [c for c in ZERO_SUPPORTED_OPTIMIZERS if not is_ours(c)]
    unwrap(deepspeed, "initialize")
    for name in ("__init__", "save_checkpoint", "load_checkpoint"):
        unwrap(deepspeed.DeepSpeedEngine, name)
    unwrap_deepspeed_adams()


# -- universal_checkpoint_info: what DeepSpeed's converter wants to find in a checkpoint of stages 1 and 2 -------------
# Issue: `ds_to_universal` refuses a checkpoint without it, unless told to --inject_missing_state.
# Why:   the engine saves the attribute of this name that it finds at the model; a client is expected to set it.
# Remove when: the engine writes it by itself.

UNIVERSAL_INFO = "universal_checkpoint_info"


def universal_checkpoint_info(model: Any) -> dict[str, Any]:
    """The dictionary of that name, made if the model has none: no tensor has a rule of its own."""
    from deepspeed.checkpoint import constants

    info: dict[str, Any] | None = getattr(model, constants.UNIVERSAL_CHECKPOINT_INFO, None)
    if info is None:
        info = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
        setattr(model, constants.UNIVERSAL_CHECKPOINT_INFO, info)
    return info


# -- Checkpoints: the param groups as they were saved ------------------------------------------------------------------
# Issue: of a universal checkpoint stage 3 gives every param group the hyperparameters of the first, so that biases and
#        norms are decayed from then on, and no stage asks whether it is the state of this optimizer. Of others the
#        weights are loaded before the optimizer can say that the state is of another one.
# Why:   the checkpoint has the groups as they were saved.
# Remove when: DeepSpeed asks the optimizer first, and loads universal checkpoints through its load_state_dict.


def loads_state(load_checkpoint: Any, engine: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call of `load_checkpoint` asks for the optimizer's state."""
    call = inspect.signature(load_checkpoint).bind(engine, *args, **kwargs)
    call.apply_defaults()
    return bool(call.arguments.get("load_optimizer_states")) and not call.arguments.get("load_module_only")


def saved_groups(load_checkpoint: Any, engine: Any, args: Any, kwargs: Any) -> list[dict[str, Any]]:
    """Return the param groups of the optimizer's state that a call of `load_checkpoint` will load.

    None if it loads no state, or if DeepSpeed will not find the file either and says what is missing.
    """
    if not loads_state(load_checkpoint, engine, args, kwargs):
        return []
    call = inspect.signature(load_checkpoint).bind(engine, *args, **kwargs)
    call.apply_defaults()
    folder, tag, universal = str(call.arguments["load_dir"]), call.arguments["tag"], engine.load_universal_checkpoint()
    latest = os.path.join(folder, "latest_universal" if universal else "latest")
    if tag is None and os.path.isfile(latest):
        with open(latest, encoding="utf-8") as file:
            tag = file.read().strip()
    folder = os.path.join(folder, str(tag))
    names = (os.path.join("zero", "optimizer_state.pt"),) if universal else ("*optim_states.pt", "*model_states.pt")
    for name in names:
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), name)))[:1]:
            saved = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=False)
            return _groups_in(saved)
    return []


def _groups_in(saved: Any) -> list[dict[str, Any]]:
    """Return the param groups in a file of a checkpoint, where each stage has them in other dictionaries."""
    while isinstance(saved, Mapping) and "param_groups" not in saved:
        inside = [saved[key] for key in ("optimizer_state_dict", "base_optimizer_state", "optimizer") if key in saved]
        saved = inside[0] if inside else None
    return list(saved["param_groups"]) if isinstance(saved, Mapping) else []


# -- Gradients of tensors that have none -------------------------------------------------------------------------------
# Issue: stage 3 keeps a tensor's last gradient in its buffer, and adds to it, or counts it in the norm, when the tensor
#        has none in the next step; an inf there makes it skip the next steps, too. With the optimizer offloaded, stages
#        2 and 3 lose or repeat the gradient of a tensor that has one only in some of the micro-batches of a step.
# Why:   the first can be put right from outside, the second not.
# Remove when: DeepSpeed clears its buffers.


def loses_gradients(engine: Any) -> bool:
    """Whether gradients are lost that come in some of the micro-batches of a step alone."""
    offload = engine.zero_offload_optimizer()
    offloaded = engine.zero_use_cpu_optimizer() or (offload is not None and offload.device != "none")
    return offloaded and engine.zero_optimization_stage() >= 2


def before_backward(engine: Any, call: Callable[[Any], None]) -> None:
    """Let `call(engine)` happen before each of the engine's backward passes."""
    original, of = type(engine).backward, weakref.ref(engine)  # the engine is not to keep itself alive

    def backward(*args: Any, **kwargs: Any) -> Any:
        call(of())
        return original(of(), *args, **kwargs)

    engine.backward = backward


def clear_used_gradients(optimizer: Any) -> None:
    """Clear the gradients of a ZeRO 3 optimizer after each of its steps, one that an overflow skips included."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    if not isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return
    original, of = type(optimizer).step, weakref.ref(optimizer)  # the optimizer is not to keep itself alive

    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(of(), *args, **kwargs)
        buffer = getattr(of(), "grad_partitions_flat_buffer", None)
        if buffer is not None:
            buffer.zero_()
        return result

    optimizer.step = step


# -- Param groups of experts -------------------------------------------------------------------------------------------
# Issue: the experts of DeepSpeed's mixture need param groups of their own. It makes them for an optimizer that the
#        config names, but not for one that a function makes, and needs names for the groups that it divides.
# Why:   a block of ours is a function to DeepSpeed.
# Remove when: DeepSpeed can be told of an optimizer class.


def expert_groups(params: Any) -> list[Any]:
    """Return `params`, parameters or param groups, with DeepSpeed's experts in groups of their own."""
    from deepspeed.moe.utils import configure_moe_param_groups, is_moe_param

    given: list[Any] = list(params)
    groups = [p for p in given if isinstance(p, dict)]
    tensors = [p for group in groups for p in group["params"]] if groups else given
    if not any(map(is_moe_param, tensors)):
        return given
    if groups:
        given = [{"name": f"group{i}"} | group for i, group in enumerate(groups)]
    divided: list[Any] = configure_moe_param_groups(given)
    return divided


# -- ZeRO's optimizers: which tensors a flat partition is made of ------------------------------------------------------
# Issue: ADOPT counts steps tensor by tensor, and ZeRO hands it one flat tensor for many.
# Why:   their lists of groups are the only place that knows.
# Remove when: DeepSpeed tells an optimizer what its partitions hold.


class FlatGroup(NamedTuple):
    """A flat parameter of this process, and what is in it."""

    flat: Tensor
    tensors: list[Tensor]  # of the model, those of other processes too, in the same order everywhere
    stretches: list[tuple[int, int, int]]  # (index of the tensor, start, numel), this process's
    process_group: Any  # of torch.distributed: the processes that share the tensors


def zero_flat_groups(optimizer: Any) -> list[FlatGroup]:
    """What the optimizer of a DeepSpeed engine has flattened; nothing for an optimizer that is not ZeRO's.

    Raises:
        ImportError: this DeepSpeed has changed ZeRO's optimizers.
    """
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    try:
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            return [
                FlatGroup(flat, list(tensors), _consecutive(tensors), _group_of_all(tensors, optimizer))
                for flat, tensors in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True)
            ]
        if isinstance(optimizer, DeepSpeedZeroOptimizer):
            return [
                FlatGroup(flat, list(tensors), _cut(flat, tensors, offsets, process_group), process_group)
                for flat, tensors, offsets, process_group in zip(
                    optimizer.single_partition_of_fp32_groups,
                    optimizer.round_robin_bit16_groups,  # in the order of the flat tensor, with round robin or without
                    optimizer.round_robin_bit16_offsets,
                    optimizer.real_dp_process_group,
                    strict=True,
                )
            ]
        if isinstance(optimizer, BF16_Optimizer):
            return [
                FlatGroup(flat, list(tensors), _linked(tensors), process_group)
                for flat, tensors, process_group in zip(
                    optimizer.fp32_groups_flat_partition,
                    optimizer.bf16_groups,
                    optimizer.real_dp_process_group,
                    strict=True,
                )
            ]
        return []
    except AttributeError as error:
        raise _changed(optimizer, error) from error


def _group_of_all(tensors: Any, optimizer: Any) -> Any:
    """Return the processes among which stage 3 divides each of the tensors: the experts of AutoEP have their own."""
    groups = [getattr(tensor, "ds_process_group", optimizer.dp_process_group) for tensor in tensors]
    by_ranks = {tuple(torch.distributed.get_process_group_ranks(group)): group for group in groups}
    if len(by_ranks) > 1:
        raise RuntimeError(
            "one param group has tensors that are divided among different processes "
            f"({' and '.join(map(str, sorted(by_ranks)))}), and ADOPT counts the steps of a group's tensors together: "
            "put the experts into param groups of their own"
        )
    return groups[0]


def zero_whole_tensors(engine: Any) -> list[tuple[Any, list[tuple[Tensor, Tensor]]]]:
    """Return the tensors that stage 0 leaves whole, by the processes that average their gradients.

    Returns:
        For each process group the pairs of a tensor of the model and the one that is stepped for it, which is its fp32
        copy or itself. No groups in other stages.

    Raises:
        ImportError: this DeepSpeed has changed the optimizer of stage 0, or its groups.
    """
    from deepspeed.moe.utils import is_moe_param
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    optimizer = engine.optimizer
    try:
        if isinstance(optimizer, FP16_UnfusedOptimizer):
            both = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            pairs = [pair for group in both for pair in zip(*group, strict=True)]
        elif isinstance(optimizer, torch.optim.Optimizer):
            pairs = [(p, p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        else:
            pairs = []
        found: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        for model, stepped in pairs:
            of_experts = is_moe_param(model)
            group = (
                engine.expert_data_parallel_group[model.group_name] if of_experts else engine.seq_data_parallel_group
            )
            found.setdefault(group, []).append((model, stepped))
    except AttributeError as error:
        raise _changed(optimizer, error) from error
    return list(found.items())


def _changed(optimizer: Any, error: AttributeError) -> ImportError:
    kind = type(optimizer).__name__
    return ImportError(f"deepspeed {_version('deepspeed')} has changed {kind} ({error}): adopt_hf must be updated")


def _consecutive(tensors: Any) -> list[tuple[int, int, int]]:
    """Stage 3: each process has its part of every tensor, one after the other."""
    stretches, start = [], 0
    for index, tensor in enumerate(tensors):
        stretches.append((index, start, tensor.partition_numel()))
        start += tensor.partition_numel()
    return stretches


def _cut(flat: Tensor, tensors: Any, offsets: Any, process_group: Any) -> list[tuple[int, int, int]]:
    """Stages 1 and 2: the flattened group is cut into as many pieces as there are processes, wherever the cuts fall."""
    size = flat.numel()
    start = torch.distributed.get_rank(process_group) * size
    stretches = []
    for index, (tensor, offset) in enumerate(zip(tensors, offsets, strict=True)):
        low, high = max(offset, start), min(offset + tensor.numel(), start + size)
        if low < high:
            stretches.append((index, low - start, high - low))
    return sorted(stretches, key=lambda stretch: stretch[1])


def _linked(tensors: Any) -> list[tuple[int, int, int]]:
    """Stage 1 in bf16 with float32 gradients: the same, and each tensor knows its piece."""
    mappings = [(index, tensor._hp_mapping) for index, tensor in enumerate(tensors) if tensor._hp_mapping is not None]
    addresses = [(index, mapping.get_hp_fragment_address()) for index, mapping in mappings]
    return sorted(((i, address.start, address.numel) for i, address in addresses), key=lambda stretch: stretch[1])
