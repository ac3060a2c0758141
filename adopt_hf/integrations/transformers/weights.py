"""Weights that the Trainer loads: an adapter that ADOPT trains keeps its precision."""

from typing import Any

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.integrations import peft
from adopt_hf.integrations.transformers import arguments


def load_from_checkpoint(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the Trainer that loads weights. If ADOPT trains an adapter, it keeps its precision."""
    if arguments.asks_for_adopt(trainer) or is_adopt_optimizer(innermost(trainer.optimizer)):
        return peft.keep_precision(original, trainer, *args, **kwargs)
    return original(trainer, *args, **kwargs)
