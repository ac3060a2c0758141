"""The monitor of ADOPT in a Trainer: its figures in the logs, and with them in everything that `report_to` names."""

import sys
from typing import TYPE_CHECKING, Any

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.integrations.transformers import TRAINER, optim_args
from adopt_hf.integrations.transformers.others import warn_of_another

if TYPE_CHECKING:
    from transformers import TrainingArguments

TARGET = f"{TRAINER}:CallbackHandler.on_train_begin"


def add_where_asked_for(original: Any, handler: Any, args: "TrainingArguments", *rest: Any, **kwargs: Any) -> Any:
    """Add an AdoptMonitor in `CallbackHandler.on_train_begin` if `optim_args` asks for one, and put it first.

    This is also the first call that knows the optimizer which a Trainer, or its subclass, has ended up with.
    """
    from adopt_hf.integrations.transformers.callback import AdoptMonitor

    warn_of_another(handler.optimizer, args)
    monitors = [callback for callback in handler.callbacks if isinstance(callback, AdoptMonitor)]
    others = [callback for callback in handler.callbacks if callback not in monitors]
    ours = [callback for callback in monitors if not callback.is_of_optim_args]  # the next training asks again
    is_adopt = is_adopt_optimizer(innermost(handler.optimizer))  # another optimizer reads optim_args in its own way
    if not ours and is_adopt and optim_args.parse(args.optim_args).get("monitor"):
        ours = [AdoptMonitor()]
        ours[0].is_of_optim_args = True
    if monitors or ours:
        handler.callbacks[:] = ours + others
    return original(handler, args, *rest, **kwargs)


def check_trainer() -> None:
    """Raise ImportError if the Trainer is not patched, so that it cannot have a monitor that `optim_args` asks for."""
    handler = getattr(sys.modules.get(TRAINER), "CallbackHandler", None)
    if handler is not None and not hasattr(handler.on_train_begin, "_adopt_hf_wraps"):
        raise ImportError(
            "optim_args: monitor=true needs adopt_hf's patch of `CallbackHandler.on_train_begin` of transformers, "
            "which this version has changed or adopt_hf.unregister() has restored: remove it, and pass "
            "callbacks=[adopt_hf.AdoptMonitor()] to the Trainer"
        )
