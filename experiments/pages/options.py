"""The options and their defaults, from the code's own tables and the signatures of the classes."""

import inspect
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import adopt_hf
from adopt_hf.hyperparameters import HYPERPARAMETERS, OPTIONS
from adopt_hf.integrations.transformers import fields, optim_args
from experiments.harness import pages

CLASSES = ("ADOPT", "ADOPTW")
FIELDS = {"lr": "learning_rate", "weight_decay": "weight_decay", "seed": "seed"}  # of TrainingArguments, next to Adam's
FOR_INTEGRATIONS = ("float32_apart", "regroup")  # in the docstring of ADOPT only


def keys() -> str:
    """Return the keys of `optim_args`, with `betas` next to the two that it stands for."""
    names = [name for name in optim_args.KEYS if name != "betas"]
    names.insert(names.index("beta2") + 1, "betas")
    return code(names)


def deepspeed_keys() -> str:
    """Return the keys of `params` in an `"optimizer"` block."""
    return code(OPTIONS)


def code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table() -> str:
    """Return each option with the defaults of the classes and of the Trainer.

    Raises:
        ValueError: If a class has an argument that is no option, or the other way round.
    """
    classes = {name: defaults(getattr(adopt_hf, name)) for name in CLASSES if hasattr(adopt_hf, name)}
    for name, found in classes.items():
        if sorted(found) != sorted(OPTIONS):
            raise ValueError(f"the arguments of {name} are {sorted(found)}, the options {sorted(OPTIONS)}")
    head = ["option", *(f"`{name}`" for name in classes), '`optim="adopt"`', "its field", "meaning"]
    lines = []
    for name in OPTIONS:
        values = [shown(found[name]) for found in [*classes.values(), of_trainer()]]
        words = "each in [0, 1)" if name == "betas" else HYPERPARAMETERS[name].help
        lines.append([code([name]), *values, field(name), words])
    return pages.table(head, lines)


def defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of a class's arguments, and of those that it passes to its base class."""
    found: dict[str, Any] = {}
    for one in (adopt_hf.ADOPT, cls):
        taken = inspect.signature(one.__init__).parameters.values()
        found |= {p.name: p.default for p in taken if p.default is not p.empty}
    return {name: default for name, default in found.items() if name not in FOR_INTEGRATIONS}


@cache
def of_trainer() -> dict[str, Any]:
    """Return the numbers of the param group that the Trainer makes if nothing is set."""
    from transformers import TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, optim="adopt", report_to="none", use_cpu=True)
        cls, kwargs = adopt_hf.trainer_kwargs(args)
    group: dict[str, Any] = cls([torch.nn.Parameter(torch.zeros(1))], **kwargs).param_groups[0]
    return group | kwargs  # beta2_warmup=True is a number in the group


def field(name: str) -> str:
    """Return the field of TrainingArguments that sets an option, if there is one besides `optim_args`."""
    adams = [fields.ADAM[one] for one in (("beta1", "beta2") if name == "betas" else (name,)) if one in fields.ADAM]
    return code(adams or [FIELDS[name]] if adams or name in FIELDS else [])


def shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value}"


TEXTS: dict[str, Callable[[], str]] = {"options": table, "optim args": keys, "deepspeed block": deepspeed_keys}
