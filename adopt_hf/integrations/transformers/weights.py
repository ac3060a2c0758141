"""Weights that the Trainer loads: an adapter that ADOPT trains keeps its precision."""

from typing import Any

from adopt_hf.integrations import peft
from adopt_hf.integrations.transformers import arguments, names
from adopt_hf.optimizer import is_adopt_optimizer


def load_from_checkpoint(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the Trainer that loads weights. The precision of an adapter is unchanged if ADOPT trains it."""
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if (
        trainer.args.optim in names.registered
        or is_adopt_optimizer(optimizer)
        or arguments.was_given_the_class(trainer)
    ):
        return peft.keep_precision(original, trainer, *args, **kwargs)
    return original(trainer, *args, **kwargs)
