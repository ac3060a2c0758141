"""The monitor of ADOPT in a Trainer: its figures in the logs, and with them in everything that `report_to` names."""

import sys
from typing import TYPE_CHECKING, Any

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.integrations.transformers import TRAINER, optim_args

if TYPE_CHECKING:
    from transformers import TrainingArguments

TARGET = f"{TRAINER}:CallbackHandler.on_train_begin"


def add_where_asked_for(original: Any, handler: Any, args: "TrainingArguments", *rest: Any, **kwargs: Any) -> Any:
    """Add an AdoptMonitor in `CallbackHandler.on_train_begin` if `optim_args` asks for one, and put it first."""
    from adopt_hf.integrations.transformers.callback import AdoptMonitor

    ours = [callback for callback in handler.callbacks if isinstance(callback, AdoptMonitor)]
    is_adopt = is_adopt_optimizer(innermost(handler.optimizer))  # another optimizer reads optim_args in its own way
    if not ours and is_adopt and optim_args.parse(args.optim_args).get("monitor"):
        ours = [AdoptMonitor()]
    if ours:
        handler.callbacks[:] = ours + [callback for callback in handler.callbacks if callback not in ours]
    return original(handler, args, *rest, **kwargs)


def check_trainer() -> None:
    """Raise ImportError if this version of transformers cannot have a monitor that `optim_args` asks for."""
    handler = getattr(sys.modules.get(TRAINER), "CallbackHandler", None)
    if handler is not None and not hasattr(handler.on_train_begin, "_adopt_hf_wraps"):
        raise ImportError(
            "optim_args: monitor=true needs `CallbackHandler.on_train_begin` of transformers, which this version has "
            "changed: remove it, and pass callbacks=[adopt_hf.AdoptMonitor()] to the Trainer"
        )
