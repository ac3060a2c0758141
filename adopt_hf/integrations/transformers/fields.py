"""Adam's fields of TrainingArguments: which numbers a user has set, which were only left at Adam's defaults.

TrainingArguments hold `adam_beta2=0.999` and `adam_epsilon=1e-8` whether or not a user has set them. A field at this
default counts as not set. It counts as set if it was assigned after construction, as a trial of
`Trainer.hyperparameter_search` does, or if it was written in a call of `TrainingArguments.set_optimizer`.
"""

import dataclasses
import inspect
import logging
from typing import TYPE_CHECKING, Any

from adopt_hf.integrations.transformers import names

if TYPE_CHECKING:
    from transformers import TrainingArguments

ADAM = {"beta1": "adam_beta1", "beta2": "adam_beta2", "eps": "adam_epsilon"}  # ADOPT's name -> the field
OF_SET_OPTIMIZER = {"beta1": "adam_beta1", "beta2": "adam_beta2", "epsilon": "adam_epsilon"}
ASSIGNED = "_adopt_hf_assigned"  # in vars(args): the names of fields, which pickle and copy with the arguments

logger = logging.getLogger("adopt_hf")
_warned = False


def set_by_user(args: "TrainingArguments") -> dict[str, float]:
    """Return Adam's numbers that a user has set, by ADOPT's names."""
    defaults = _defaults(args)
    assigned = vars(args).get(ASSIGNED, frozenset())
    numbers = {name: getattr(args, field) for name, field in ADAM.items()}
    return {name: n for name, n in numbers.items() if ADAM[name] in assigned or n != defaults[name]}


def warn_of_replaced(args: "TrainingArguments", used: dict[str, float]) -> None:
    """Warn, once a process, if a number of Adam was written in TrainingArguments and the run uses another one.

    A default that was written on a command line or in a call equals one that was not set, but it is another object.
    That is enough for a warning. It is too little to decide what a run trains with, because unpickled arguments hold
    other objects too.

    Args:
        used: the numbers of the run, by ADOPT's names.
    """
    global _warned
    defaults = _defaults(args)
    fields = {name: (field, getattr(args, field)) for name, field in ADAM.items()}
    replaced = {
        name: f"{field}={value}"
        for name, (field, value) in fields.items()
        if used[name] != value == defaults[name] and value is not defaults[name]
    }
    if not replaced or _warned:
        return
    _warned = True
    written = ", ".join(f"{name}={fields[name][1]}" for name in replaced)
    logger.warning(
        "TrainingArguments were given %s, Adam's default, which they hold as well if nothing is set. ADOPT therefore "
        'trains with its own %s. To train with the given numbers write optim_args="%s"',
        " and ".join(replaced.values()),
        " and ".join(f"{name}={used[name]}" for name in replaced),
        written,
    )


def _defaults(args: "TrainingArguments") -> dict[str, float]:
    defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(args)}
    return {name: defaults[field] for name, field in ADAM.items()}


def assign(original: Any, args: Any, name: str, value: Any) -> None:
    """`TrainingArguments.__setattr__` that notes which of Adam's fields are assigned, and checks a name of ADOPT."""
    if name == "optim":
        names.before_use(value)
    if name in ADAM.values() and name in vars(args):  # the first time is the constructor's
        vars(args)[ASSIGNED] = vars(args).get(ASSIGNED, frozenset()) | {name}
    original(args, name, value)


def set_optimizer(original: Any, args: Any, /, *values: Any, **named: Any) -> Any:
    """`TrainingArguments.set_optimizer` that notes which of Adam's numbers are written in the call."""
    written = inspect.signature(original).bind(args, *values, **named).arguments
    result = original(args, *values, **named)
    vars(args)[ASSIGNED] = frozenset(field for name, field in OF_SET_OPTIMIZER.items() if name in written)
    return result
