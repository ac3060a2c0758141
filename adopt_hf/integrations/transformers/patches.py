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
    names,
    weights,
)

PATCHES = (
    Patch(
        target=f"{ARGUMENTS}:TrainingArguments.__setattr__",
        around=fields.assign,
        takes="self, name, value",
        issue="The arguments hold Adam's defaults and do not say whether a user has set them. A trial of "
        "`hyperparameter_search` that sets adam_beta2=0.999 looks like arguments in which nothing was set. And a "
        "Trainer that does not fit has to say so in the line that asks for ADOPT.",
        why="Trials and users assign fields after construction, which can be seen here.",
        remove_when="TrainingArguments say which fields were set, or an optimizer can have its own defaults.",
    ),
    Patch(
        target=f"{ARGUMENTS}:TrainingArguments.set_optimizer",
        around=fields.set_optimizer,
        takes="self, *, beta1, beta2, epsilon",
        issue="As for `__setattr__`: numbers that are written in this call equal Adam's defaults.",
        why="The call says which of its arguments were written.",
        remove_when="The patch of `__setattr__` is removed.",
    ),
    Patch(
        target=f"{TRAINER}:Trainer.get_optimizer_cls_and_kwargs",
        around=arguments.get_optimizer_cls_and_kwargs,
        takes="args, model",
        issue="The name is looked up in a private table, after a private parser has split `optim_args` at every comma "
        'and equals sign: `betas=(0.9,0.99)` or a trailing comma fail there with "not enough values".',
        why="In front of both, our own parser can read the text and say what is wrong with it.",
        remove_when="transformers lets a package register an optimizer and hands it the text.",
        asks=names.has_name,  # in arguments that were made, or unpickled, before the Trainer was imported
    ),
    Patch(
        target=f"{TRAINER}:Trainer._load_from_checkpoint",
        around=weights.load_from_checkpoint,
        takes="self, resume_from_checkpoint",
        issue="It calls `PeftModel.load_adapter` with autocast_adapter_dtype=True, which replaces the 16-bit "
        "parameters of an adapter by new ones in float32: the run goes on in another precision, and an optimizer that "
        "was made before holds the old ones.",
        why="The weights are loaded here and nowhere else, and no caller has a say in the arguments.",
        remove_when="The Trainer loads into the adapter that is there, as it is.",
    ),
    Patch(
        target=f"{TRAINER}:Trainer._load_best_model",
        around=deepspeed.load_best_model,
        takes="self",
        issue="As for `_load_from_checkpoint`. And it lets DeepSpeed load all of the best checkpoint, which brings "
        "back a part of the state and no weights if the optimizer is on NVMe.",
        why="The weights are loaded here and nowhere else.",
        remove_when="The Trainer loads into the adapter that is there, and DeepSpeed loads weights by themselves.",
    ),
    Patch(
        target=f"{TRAINER}:load_fsdp_optimizer",
        around=guard.load_fsdp_optimizer,
        takes=guard.FSDP_LOAD_TAKES,
        issue="torch's distributed checkpoints fail with a KeyError of a name in the param groups if the state is "
        "another optimizer's.",
        why="The Trainer has imported this public function of Accelerate by name.",
        remove_when="torch says there which optimizer the state is of.",
        optional=True,
    ),
    Patch(
        target=f"{TRAINER}:deepspeed_init",
        around=deepspeed.deepspeed_init,
        takes="trainer",
        called="deepspeed_init for DeepSpeed",
        issue='An optimizer or a class that was handed to the Trainer is dropped, and with an "optimizer" block in the '
        "DeepSpeed config the block's optimizer trains instead, without a word.",
        why="It is the last place that knows both. The Trainer has imported it by name.",
        remove_when="transformers raises an error there.",
    ),
    Patch(
        target=f"{DEEPSPEED}:HfTrainerDeepSpeedConfig.trainer_config_process",
        around=deepspeed.trainer_config_process,
        takes="self, args",
        called="trainer_config_process for DeepSpeed",
        issue='It fills "auto" with Adam\'s betas and eps, calls ADOPT\'s own a mismatch, and with an "optimizer" '
        "block of any type the Trainer no longer asks what `optim` says.",
        why="Every DeepSpeed config passes here, of TrainingArguments and of the launcher, before anything is built.",
        remove_when="transformers lets a registered optimizer fill its own block.",
    ),
    Patch(
        target=f"{DEEPSPEED}:deepspeed_optim_sched",
        around=deepspeed.deepspeed_optim_sched,
        takes="trainer, hf_deepspeed_config",
        called="deepspeed_optim_sched for DeepSpeed",
        issue="All parameters of an optimizer that DeepSpeed builds go into one group, so that biases and norms are "
        "decayed.",
        why="The Trainer hands the parameters over here.",
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
    has_names = module != ARGUMENTS or names.has_optimizer_names()
    return PACKAGE.says_changed(_version(), patching.changed(patches_of(module)) if has_names else "OptimizerNames")


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
