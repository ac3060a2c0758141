"""The patches of transformers, step by step: each of three modules is patched when it has been imported.

A program may use the arguments without the Trainer, and importing the Trainer takes seconds.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from adopt_hf.integrations import guard, patching
from adopt_hf.integrations.after_import import is_executed, is_executing, when_imported, when_imported_no_more
from adopt_hf.integrations.transformers import (
    ARGUMENTS,
    DEEPSPEED,
    TRAINER,
    arguments,
    deepspeed,
    fields,
    names,
    patches,
    weights,
)

logger = logging.getLogger("adopt_hf")


class _Step(NamedTuple):
    patch: Callable[[], None]
    undo: Callable[[], None]


def patch_trainer() -> None:
    """Let the Trainer make ADOPT for the names, and load checkpoints and weights as ADOPT needs it."""
    patches.wrap_trainer_optimizers(names._registered, arguments.trainer_kwargs)
    patches.wrap_trainer_load(weights._load)
    guard.wrap_fsdp_load(TRAINER, guard.load_fsdp_optimizer)
    patches.wrap_deepspeed_init(deepspeed._deepspeed_init)


def unpatch_trainer() -> None:
    """Undo `patch_trainer`."""
    patches.unwrap_trainer_optimizers()
    patches.unwrap_trainer_load()
    guard.unwrap_fsdp_load(TRAINER)
    patches.unwrap_deepspeed_init()


def patch_deepspeed() -> None:
    """Let the Trainer fill the "optimizer" block of a DeepSpeed config by ADOPT's rules."""
    patches.wrap_trainer_deepspeed(deepspeed._process_deepspeed_config, deepspeed._deepspeed_optimizer)


def _patch_arguments() -> None:
    names.add_names()
    fields.register(_before_optim)


def _unpatch_arguments() -> None:
    fields.unregister()
    names.remove_names()


STEPS = {  # a module of transformers -> what is patched when it has been executed
    ARGUMENTS: _Step(_patch_arguments, _unpatch_arguments),
    DEEPSPEED: _Step(patch_deepspeed, patches.unwrap_trainer_deepspeed),
    TRAINER: _Step(patch_trainer, unpatch_trainer),
}


def _register_transformers() -> None:
    reason = next(filter(None, map(patches.module_mismatch, filter(is_executed, STEPS))), None)
    if reason:
        _refuse(reason)
        return
    for module in STEPS:
        failed = _arguments_failed if module == ARGUMENTS else None
        when_imported(module, functools.partial(_take, module), failed)


def _take(module: str) -> None:
    """Patch `module`, which has been executed, or let the names say why it cannot be patched."""
    reason = patches.module_mismatch(module)
    if reason is None:
        STEPS[module].patch()
    else:
        _refuse(reason)


def _refuse(reason: str) -> None:
    """Take no other step, and let the names say why."""
    for module in STEPS:
        when_imported_no_more(module)
    when_imported(ARGUMENTS, functools.partial(_explain, reason), _arguments_failed)


def _explain(reason: str) -> None:
    if names.has_optimizer_names():
        explain_names(reason)
    else:  # there is no name that could say it
        _warn(reason)


def explain_names(reason: str) -> None:
    """Let every use of the names raise ImportError(reason), instead of what `add_names` has made of them."""
    names._registered.clear()
    for name in names.NAMES:
        names.remove_optimizer_name(name)
        names.explain_optimizer_name(name, reason)
    patches.refuse_trainer_optimizers(names.NAMES, reason)


def _arguments_failed(error: Exception) -> None:
    """Say why there is no name that could say why: TrainingArguments cannot be imported."""
    _warn(patches.cannot_be_imported(patching.failure_of(ARGUMENTS, error)))


@functools.cache  # once a process
def _warn(reason: str) -> None:
    logger.warning("%s", reason)


def _before_optim(optim: Any) -> None:
    """Import the Trainer before one of the names is used.

    Where it does not fit, the user learns it from the line that asks for ADOPT.

    Raises:
        ImportError: the Trainer cannot be imported, or has changed what this relies on.
    """
    if optim not in names.NAMES or is_executed(TRAINER) or is_executing(TRAINER):
        return
    reason = patches.transformers_mismatch()
    if reason:
        _refuse(reason)
        raise ImportError(reason)
