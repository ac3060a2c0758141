"""Patch transformers step by step: each of its three modules when it has been imported.

A program may use the arguments without the Trainer, and importing the Trainer takes seconds.
"""

import functools
import logging

from adopt_hf.integrations import patching
from adopt_hf.integrations.after_import import is_executed, is_executing, when_imported, when_imported_no_more
from adopt_hf.integrations.transformers import ARGUMENTS, MODULES, TRAINER, names, observer, patches

logger = logging.getLogger("adopt_hf")


def register() -> None:
    """Patch each of the modules when it has been imported. If one does not fit, let ADOPT's names raise the reason."""
    reason = next(filter(None, map(patches.module_mismatch, filter(is_executed, MODULES))), None)
    if reason:
        _refuse(reason)
        return
    for module in MODULES:
        failed = _arguments_failed if module == ARGUMENTS else None
        when_imported(module, functools.partial(_take, module), failed)


def unregister() -> None:
    """Undo `register()`."""
    for module in MODULES:
        when_imported_no_more(module, functools.partial(_uninstall, module))


def _take(module: str) -> None:
    """Patch `module`, which has been executed. If it does not fit, let ADOPT's names raise the reason."""
    reason = patches.module_mismatch(module)
    if reason is not None:
        _refuse(reason)
        return
    if module == ARGUMENTS:
        names.add_names(_check_trainer)
    elif module == TRAINER:
        names.settle_names()
    patching.install(patches.patches_of(module))
    if module == TRAINER and observer.is_asked():
        observer.add()


def _uninstall(module: str) -> None:
    patching.uninstall(patches.patches_of(module))
    if module == ARGUMENTS:
        names.remove_names()
    if module == TRAINER:
        observer.remove()


def _refuse(reason: str) -> None:
    """Patch no further module, and let ADOPT's names raise `reason`."""
    for module in MODULES:
        when_imported_no_more(module)
    when_imported(ARGUMENTS, functools.partial(_explain, reason), _arguments_failed)


def _explain(reason: str) -> None:
    if names.has_optimizer_names():
        names.explain_names(reason)
        patching.install(patches.patches_of(TRAINER), reason)
    else:  # there is no name that could raise the reason
        _warn(reason)


def _arguments_failed(error: Exception) -> None:
    """Log why TrainingArguments cannot be imported. There is no name then that could raise the reason."""
    _warn(patches.cannot_be_imported(patching.failure_of(ARGUMENTS, error)))


@functools.cache  # once a process
def _warn(reason: str) -> None:
    logger.warning("%s", reason)


def _check_trainer() -> None:
    """Import the Trainer before one of the names is used, so that the line that asks for ADOPT raises the error.

    Raises:
        ImportError: If the Trainer cannot be imported, or has changed what ADOPT relies on.
    """
    if is_executed(TRAINER) or is_executing(TRAINER):
        return
    reason = patches.mismatch()
    if reason:
        _refuse(reason)
        raise ImportError(reason)
