"""The functions of transformers that are replaced, each with issue, why, and remove when; and which versions fit."""

import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Collection
from typing import Any

from adopt_hf.integrations import patching
from adopt_hf.integrations.patching import Around
from adopt_hf.integrations.transformers import ARGUMENTS, DEEPSPEED, TRAINER, names

TRANSFORMERS_MIN = "5.2"


def transformers_mismatch() -> str | None:
    """Why the patches below do not fit the installed transformers, or None. Imports the Trainer."""
    reason = _version_mismatch()
    if reason:
        return reason
    failure = patching.import_failure(*CHANGED)
    if failure:
        return cannot_be_imported(failure)
    return next(filter(None, map(module_mismatch, CHANGED)), None)


def cannot_be_imported(failure: str) -> str:
    """Why ADOPT cannot be used, if `failure` says which module of transformers cannot be imported."""
    reason = _version_mismatch()
    return (
        reason or f"optim='adopt' needs the Trainer of transformers {patching._version('transformers')}, and {failure}"
    )


def module_mismatch(module: str) -> str | None:
    """Why the patches of one of the three modules, which has been executed, do not fit it, or None. Imports nothing."""
    reason = _version_mismatch()
    if reason:
        return reason
    changed = CHANGED[module](sys.modules[module])
    if changed is None:
        return None
    return f"transformers {patching._version('transformers')} has changed {changed}: adopt_hf must be updated"


def _version_mismatch() -> str | None:
    try:
        installed = patching._version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return f"optim='adopt' needs transformers {TRANSFORMERS_MIN} or later, and transformers is not installed"
    if patching._is_older(installed, TRANSFORMERS_MIN):
        return f"optim='adopt' needs transformers {TRANSFORMERS_MIN} or later, installed is {installed}"
    return None


def _changed_arguments(module: Any) -> str | None:
    if not names.has_optimizer_names():
        return "OptimizerNames"
    arguments = getattr(module, "TrainingArguments", None)
    if not {"beta1", "beta2", "epsilon"} <= set(patching._parameters(arguments, "set_optimizer")):
        return "TrainingArguments.set_optimizer"
    return None


def _changed_trainer(module: Any) -> str | None:
    trainer = getattr(module, "Trainer", None)
    method = inspect.getattr_static(trainer, "get_optimizer_cls_and_kwargs", None)
    if not isinstance(method, staticmethod) or list(inspect.signature(method.__func__).parameters) != ["args", "model"]:
        return "Trainer.get_optimizer_cls_and_kwargs"
    for name, first in (("_load_from_checkpoint", ["self", "resume_from_checkpoint"]), ("_load_best_model", ["self"])):
        if patching._parameters(trainer, name)[: len(first)] != first:
            return f"Trainer.{name}"
    return None if patching._parameters(module, "deepspeed_init")[:1] == ["trainer"] else "deepspeed_init for DeepSpeed"


def _changed_deepspeed(module: Any) -> str | None:
    for owner, name, first in (
        (getattr(module, "HfTrainerDeepSpeedConfig", None), "trainer_config_process", ["self", "args"]),
        (module, "deepspeed_optim_sched", ["trainer", "hf_deepspeed_config"]),
    ):
        if patching._parameters(owner, name)[: len(first)] != first:
            return f"{name} for DeepSpeed"
    return None


CHANGED: dict[str, Callable[[Any], str | None]] = {  # module -> what the patches rely on and it has changed
    ARGUMENTS: _changed_arguments,
    TRAINER: _changed_trainer,
    DEEPSPEED: _changed_deepspeed,
}


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

    patching.wrap(Trainer, "get_optimizer_cls_and_kwargs", get_optimizer_cls_and_kwargs)


def refuse_trainer_optimizers(values: Collection[str], reason: str) -> None:
    """Where the patches do not fit: let the Trainer, if it is imported, raise ImportError for arguments with `values`.

    Such arguments were made, or unpickled, before the Trainer was imported.
    """
    trainer = patching._in(TRAINER, "Trainer")

    def refuse(original: Any, *args: Any, **kwargs: Any) -> Any:
        if any(getattr(argument, "optim", None) in values for argument in (*args, *kwargs.values())):
            raise ImportError(reason)
        return original(*args, **kwargs)

    if inspect.isroutine(getattr(trainer, "get_optimizer_cls_and_kwargs", None)):
        patching.wrap(trainer, "get_optimizer_cls_and_kwargs", refuse)


def unwrap_trainer_optimizers() -> None:
    """Undo the last two. RuntimeError if another library has wrapped the method since."""
    patching.unwrap(patching._in(TRAINER, "Trainer"), "get_optimizer_cls_and_kwargs")


# -- TrainingArguments.__setattr__, set_optimizer: which fields were set -----------------------------------------------
# Issue: they hold Adam's defaults, and do not say whether a user has set one. A trial of `hyperparameter_search` that
#        sets adam_beta2=0.999 looks like arguments in which nothing was set.
# Why:   trials and users assign fields after construction, which can be seen here.
# Remove when: TrainingArguments say which fields were set, or an optimizer can have defaults of its own.


def wrap_training_arguments(assign: Around, set_optimizer: Around) -> None:
    """Put them around `TrainingArguments.__setattr__` and `TrainingArguments.set_optimizer`."""
    from transformers.training_args import TrainingArguments

    patching.wrap(TrainingArguments, "__setattr__", assign)
    patching.wrap(TrainingArguments, "set_optimizer", set_optimizer)


def unwrap_training_arguments() -> None:
    """Undo `wrap_training_arguments`. RuntimeError if another package has wrapped a method since."""
    patching.unwrap(patching._in(ARGUMENTS, "TrainingArguments"), "__setattr__")
    patching.unwrap(patching._in(ARGUMENTS, "TrainingArguments"), "set_optimizer")


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
        patching.wrap(Trainer, name, around)


def unwrap_trainer_load() -> None:
    """Undo `wrap_trainer_load`. RuntimeError if another library has wrapped one of the methods since."""
    for name in TRAINER_LOADS:
        patching.unwrap(patching._in(TRAINER, "Trainer"), name)


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
    patching.wrap(patching._in(DEEPSPEED, "HfTrainerDeepSpeedConfig"), "trainer_config_process", process)
    patching.wrap(sys.modules[DEEPSPEED], "deepspeed_optim_sched", optim_sched)


def unwrap_trainer_deepspeed() -> None:
    """Undo `wrap_trainer_deepspeed`."""
    patching.unwrap(patching._in(DEEPSPEED, "HfTrainerDeepSpeedConfig"), "trainer_config_process")
    patching.unwrap(sys.modules[DEEPSPEED], "deepspeed_optim_sched")


def wrap_deepspeed_init(init: Around) -> None:
    """Put `init` around the `deepspeed_init` that the Trainer calls. It has imported it by name."""
    patching.wrap(sys.modules[TRAINER], "deepspeed_init", init)


def unwrap_deepspeed_init() -> None:
    """Undo `wrap_deepspeed_init`."""
    patching.unwrap(sys.modules[TRAINER], "deepspeed_init")
