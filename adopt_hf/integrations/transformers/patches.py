"""The functions of transformers that are replaced, a row each, and the check of its version."""

import importlib.metadata

from adopt_hf.integrations import guard, patching
from adopt_hf.integrations.patching import Package, Patch
from adopt_hf.integrations.transformers import (
    ARGUMENTS,
    DEEPSPEED,
    MODULES,
    TRAINER,
    arguments,
    deepspeed,
    fields,
    monitor,
    names,
    weights,
)

PATCHES = (
    Patch(
        target=f"{ARGUMENTS}:TrainingArguments.__setattr__",
        around=fields.assign,
        takes="self, name, value",
        issue="TrainingArguments hold Adam's defaults and do not say which fields a user has set. A trial of "
        "`hyperparameter_search` that sets adam_beta2=0.999 looks like one that sets nothing. And if the Trainer "
        "does not fit, no error could be raised in the line that asks for ADOPT.",
        why="Trials and users assign fields after construction, and this method sees each assignment.",
        remove_when="TrainingArguments say which fields were set, or an optimizer can have its own defaults.",
    ),
    Patch(
        target=f"{ARGUMENTS}:TrainingArguments.set_optimizer",
        around=fields.set_optimizer,
        takes="self, *, beta1, beta2, epsilon",
        issue="Numbers that are written in a call of this method can equal Adam's defaults, and then look as if they "
        "were not set.",
        why="The call shows which of its arguments were written.",
        remove_when="The patch of `__setattr__` is removed.",
    ),
    Patch(
        target=f"{TRAINER}:Trainer.get_optimizer_cls_and_kwargs",
        around=arguments.get_optimizer_cls_and_kwargs,
        takes="args, model",
        issue="The Trainer looks the name up in a private table. Before that, a private parser splits `optim_args` "
        'at every comma and equals sign, and fails at `betas=(0.9,0.99)` or a trailing comma with "not enough '
        'values".',
        why="This function is called before both, so that ADOPT's own parser can read the text and say what is wrong "
        "with it.",
        remove_when="transformers lets a package register an optimizer, and gives it the text of `optim_args`.",
        unneeded=names.all_in_registry,
        asks=names.has_name,  # in arguments that were made, or unpickled, before the Trainer was imported
    ),
    Patch(
        target=f"{TRAINER}:Trainer._load_from_checkpoint",
        around=weights.load_from_checkpoint,
        takes="self, resume_from_checkpoint",
        issue="The Trainer calls `PeftModel.load_adapter` with autocast_adapter_dtype=True, which replaces the "
        "16-bit parameters of an adapter by new ones in float32. The run continues in another precision, and an "
        "optimizer that was made before holds the old parameters.",
        why="Only this method loads the weights of a checkpoint, and no caller can change the arguments.",
        remove_when="The Trainer loads into the adapter that the model has, and keeps its precision.",
    ),
    Patch(
        target=f"{TRAINER}:Trainer._load_best_model",
        around=deepspeed.load_best_model,
        takes="self",
        issue="The Trainer replaces the parameters of an adapter, as in `_load_from_checkpoint`. It also lets "
        "DeepSpeed load the whole best checkpoint. If the optimizer is on NVMe, that restores a part of the state "
        "and no weights.",
        why="Only this method loads the weights of the best model.",
        remove_when="The Trainer keeps the precision of an adapter, and DeepSpeed can load weights without the state.",
    ),
    Patch(
        target=monitor.TARGET,
        around=monitor.add_where_asked_for,
        takes="self, args, state, control",
        issue="`optim_args` can ask for a monitor. Behind the callbacks of `report_to`, it would add its figures after "
        "TensorBoard and W&B have written the logs.",
        why="The handler has the optimizer and the list of callbacks, and calls them in this order.",
        remove_when="transformers lets a callback ask to be called first.",
        optional=True,
    ),
    Patch(
        target=f"{TRAINER}:load_fsdp_optimizer",
        why="The Trainer has imported this public function of Accelerate by name.",
        **guard.FSDP_LOAD,
    ),
    Patch(
        target=f"{TRAINER}:deepspeed_init",
        around=deepspeed.deepspeed_init,
        takes="trainer",
        issue="The Trainer drops an optimizer or a class that it was given. If the DeepSpeed config has an "
        '"optimizer" block, the optimizer of the block trains instead, without a warning.',
        why="This is the last function that knows both. The Trainer has imported it by name.",
        remove_when="transformers raises an error in this case.",
    ),
    Patch(
        target=f"{DEEPSPEED}:HfTrainerDeepSpeedConfig.trainer_config_process",
        around=deepspeed.trainer_config_process,
        takes="self, args",
        issue="This method fills \"auto\" with Adam's betas and eps, and calls ADOPT's own numbers a mismatch. If "
        'there is an "optimizer" block of any type, the Trainer ignores `optim`.',
        why="Every DeepSpeed config, of TrainingArguments or of the launcher, passes through here before anything is "
        "built.",
        remove_when="transformers lets a registered optimizer fill its own block.",
    ),
    Patch(
        target=f"{DEEPSPEED}:deepspeed_optim_sched",
        around=deepspeed.deepspeed_optim_sched,
        takes="trainer, hf_deepspeed_config",
        issue="An optimizer that DeepSpeed builds gets all parameters in one group, so that biases and norms are "
        "decayed.",
        why="In this function the Trainer gives the parameters to DeepSpeed.",
        remove_when="transformers makes the decay groups for DeepSpeed's optimizers, too.",
    ),
)
PACKAGE = Package("transformers", "5.2", "optim='adopt'", PATCHES)


def patches_of(module: str) -> tuple[Patch, ...]:
    """Return the rows of one of the modules."""
    return tuple(patch for patch in PATCHES if patch.module == module)


def mismatch() -> str | None:
    """Return why the patches do not fit the installed transformers, or None. Imports the Trainer."""
    reason = _version_mismatch()
    if reason:
        return reason
    failure = patching.import_failure(*MODULES)
    if failure:
        return cannot_be_imported(failure)
    return next(filter(None, map(module_mismatch, MODULES)), None)


def cannot_be_imported(failure: str) -> str:
    """Return why ADOPT cannot be used if a module of transformers cannot be imported, as `failure` says."""
    reason = _version_mismatch()
    return reason or f"optim='adopt' needs the Trainer of transformers {_version()}, and {failure}"


def module_mismatch(module: str) -> str | None:
    """Return why the patches do not fit one of the modules, which has been executed, or None. Imports nothing."""
    reason = _version_mismatch()
    if reason:
        return reason
    name = patching.changed(patches_of(module))
    if module == ARGUMENTS and not names.has_optimizer_names():
        name = "OptimizerNames"
    return patching.says_changed("transformers", _version(), name)


def _version() -> str:
    return importlib.metadata.version("transformers")


def _version_mismatch() -> str | None:
    try:
        return PACKAGE.too_old(_version())
    except importlib.metadata.PackageNotFoundError:
        return (
            f"optim='adopt' needs transformers {PACKAGE.minimum} or later, and transformers is not installed: "
            "pip install transformers"
        )
