"""Weights that the Trainer loads: an adapter that ADOPT trains keeps its precision."""

from typing import Any

from adopt_hf.integrations import guard, peft
from adopt_hf.integrations.transformers import arguments
from adopt_hf.optimizer import is_adopt_optimizer


def load_from_checkpoint(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the Trainer that loads weights. If ADOPT trains an adapter, it keeps its precision."""
    if arguments.asks_for_adopt(trainer) or is_adopt_optimizer(guard.innermost(trainer.optimizer)):
        return peft.keep_precision(original, trainer, *args, **kwargs)
    return original(trainer, *args, **kwargs)
