"""What `import adopt_hf` puts in place in torch, transformers, accelerate and DeepSpeed, and takes back.

None of them but torch is imported for it. Each package is patched when it has been imported, and transformers step by
step, because a program may use its arguments without the Trainer, and importing the Trainer takes seconds.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from adopt_hf.integrations import accelerate, compat, deepspeed, fields, guard, trainer
from adopt_hf.integrations.after_import import is_executed, is_executing, when_imported, when_imported_no_more

logger = logging.getLogger("adopt_hf")


class _Step(NamedTuple):
    patch: Callable[[], None]
    undo: Callable[[], None]


def _patch_arguments() -> None:
    trainer.add_names()
    fields.register(_before_optim)


def _unpatch_arguments() -> None:
    fields.unregister()
    trainer.remove_names()


STEPS = {  # a module of transformers -> what is patched when it has been executed
    compat.ARGUMENTS: _Step(_patch_arguments, _unpatch_arguments),
    compat.DEEPSPEED: _Step(trainer.patch_deepspeed, compat.unwrap_trainer_deepspeed),
    compat.TRAINER: _Step(trainer.patch_trainer, trainer.unpatch_trainer),
}


def register() -> None:
    """Make `TrainingArguments(optim="adopt")` and `--optim adopt` mean ADOPT, and let accelerate and DeepSpeed keep it.

    `import adopt_hf` has arranged it already. This function imports the Trainer of transformers, so that an error comes
    at once. A second call does nothing. DeepSpeed is not imported by it.

    Raises:
        ImportError: transformers is not installed, too old, or has changed what this relies on; says which.
    """
    _register_others()
    reason = compat.transformers_mismatch()
    if reason:
        raise ImportError(reason)
    _register_transformers()


def unregister() -> None:
    """Undo `register()`, and what `import adopt_hf` has arranged: the other packages are as they were."""
    for module, step in STEPS.items():
        when_imported_no_more(module, step.undo)
    accelerate.unregister()
    deepspeed.unregister()
    guard.unregister()


def register_on_import() -> None:
    """Arrange `register()` for what has been imported or will be. An unfit transformers lets the names say why."""
    _register_others()
    _register_transformers()


def _register_others() -> None:
    guard.register()
    accelerate.register()
    deepspeed.register()


# -- transformers ------------------------------------------------------------------------------------------------------


def _register_transformers() -> None:
    reason = next(filter(None, map(compat.module_mismatch, filter(is_executed, STEPS))), None)
    if reason:
        _refuse(reason)
        return
    for module in STEPS:
        failed = _arguments_failed if module == compat.ARGUMENTS else None
        when_imported(module, functools.partial(_take, module), failed)


def _take(module: str) -> None:
    """Patch `module`, which has been executed, or let the names say why it cannot be patched."""
    reason = compat.module_mismatch(module)
    if reason is None:
        STEPS[module].patch()
    else:
        _refuse(reason)


def _refuse(reason: str) -> None:
    """Take no other step, and let the names say why."""
    for module in STEPS:
        when_imported_no_more(module)
    when_imported(compat.ARGUMENTS, functools.partial(_explain, reason), _arguments_failed)


def _explain(reason: str) -> None:
    if compat.has_optimizer_names():
        trainer.explain_names(reason)
    else:  # there is no name that could say it
        _warn(reason)


def _arguments_failed(error: Exception) -> None:
    """Say why there is no name that could say why: TrainingArguments cannot be imported."""
    _warn(compat.cannot_be_imported(compat.failure_of(compat.ARGUMENTS, error)))


@functools.cache  # once a process
def _warn(reason: str) -> None:
    logger.warning("%s", reason)


def _before_optim(optim: Any) -> None:
    """Import the Trainer before one of the names is used.

    Where it does not fit, the user learns it from the line that asks for ADOPT.

    Raises:
        ImportError: the Trainer cannot be imported, or has changed what this relies on.
    """
    if optim not in trainer.NAMES or is_executed(compat.TRAINER) or is_executing(compat.TRAINER):
        return
    reason = compat.transformers_mismatch()
    if reason:
        _refuse(reason)
        raise ImportError(reason)
