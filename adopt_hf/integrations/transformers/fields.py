"""Adam's fields of TrainingArguments: the numbers that a user has set, and those that were left at Adam's defaults.

TrainingArguments hold `adam_beta2=0.999` and `adam_epsilon=1e-8` whether or not a user has set them. A field at this
default counts as not set. It counts as set if it was assigned after construction, as a trial of
`Trainer.hyperparameter_search` does. It also counts as set if it was written in a call of
`TrainingArguments.set_optimizer`.
"""

import dataclasses
import inspect
import logging
from typing import TYPE_CHECKING, Any

from adopt_hf.integrations.transformers import names

if TYPE_CHECKING:
    from transformers import TrainingArguments

ADAM = {"beta1": "adam_beta1", "beta2": "adam_beta2", "eps": "adam_epsilon"}  # ADOPT's name -> the field
ASSIGNED = "_adopt_hf_assigned"  # in vars(args): the names of fields, which pickle and copy with the arguments

logger = logging.getLogger("adopt_hf")
_warned = False


def set_by_user(args: "TrainingArguments") -> dict[str, float]:
    """Return Adam's numbers that a user has set, by ADOPT's names."""
    assigned = vars(args).get(ASSIGNED, frozenset())
    return {
        name: getattr(args, field)
        for name, field in ADAM.items()
        if field in assigned or getattr(args, field) != default(args, field)
    }


def default(args: "TrainingArguments", field: str) -> Any:
    """Return the default of a field of TrainingArguments."""
    return next(f.default for f in dataclasses.fields(args) if f.name == field)


def is_written_default(args: "TrainingArguments", field: str) -> bool:
    """Return whether a field holds its default because a user wrote it, on a command line or in a call.

    A written default equals one that was not set, but it is another object. That is enough for a warning. It is too
    little to decide what a run trains with, because unpickled arguments hold other objects too.
    """
    value, unset = getattr(args, field), default(args, field)
    return bool(value == unset) and value is not unset


def warn_of_replaced(args: "TrainingArguments", used: dict[str, float]) -> None:
    """Warn, once a process, if a number of Adam was written in TrainingArguments and the run uses another one.

    Args:
        used: The numbers of the run, by ADOPT's names.
    """
    global _warned
    replaced = {
        name: getattr(args, field)
        for name, field in ADAM.items()
        if used[name] != getattr(args, field) and is_written_default(args, field)
    }
    if not replaced or _warned:
        return
    _warned = True
    logger.warning(
        "TrainingArguments were given %s, Adam's default, which they hold as well if nothing is set. ADOPT therefore "
        'trains with its own %s. To train with the given numbers write optim_args="%s"',
        " and ".join(f"{ADAM[name]}={value}" for name, value in replaced.items()),
        " and ".join(f"{name}={used[name]}" for name in replaced),
        ", ".join(f"{name}={value}" for name, value in replaced.items()),
    )


def assign(original: Any, args: Any, name: str, value: Any) -> None:
    """Note in `TrainingArguments.__setattr__` which of Adam's fields are assigned, and check a name of ADOPT."""
    if name == "optim":
        names.before_use(value)
    if name in ADAM.values() and name in vars(args):  # the constructor assigns it first
        vars(args)[ASSIGNED] = vars(args).get(ASSIGNED, frozenset()) | {name}
    original(args, name, value)


def set_optimizer(original: Any, args: Any, /, *values: Any, **named: Any) -> Any:
    """Note in `TrainingArguments.set_optimizer` which of Adam's numbers are written in the call."""
    written = inspect.signature(original).bind(args, *values, **named).arguments
    result = original(args, *values, **named)
    vars(args)[ASSIGNED] = frozenset(field for field in ADAM.values() if field.removeprefix("adam_") in written)
    return result
