"""The options and their defaults, from the code's own tables and the signatures of the classes."""

import inspect
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

import adopt_hf
from adopt_hf.algorithm import WARMUP_EXPONENT
from adopt_hf.integrations.deepspeed import ds_config
from adopt_hf.integrations.transformers import fields, optim_args

CLASSES = ("ADOPT", "ADOPTW")
FIELDS = {"lr": "learning_rate", "weight_decay": "weight_decay", "seed": "seed"}  # of TrainingArguments, beside Adam's
WORDS = {  # options that stand in one row, and what they are
    ("lr",): "float or one-element tensor",
    ("betas",): "each in [0, 1)",
    ("eps",): "lower bound of sqrt(v)",
    ("weight_decay",): "",
    ("decouple",): "weight decay as in AdamW; else L2",
    ("clip_exp",): "the normalised gradient is clipped to t^clip_exp; `None`: not at all",
    ("beta2_warmup",): f"min(beta2, 1 - (t+1)^-k): a memory that grows; k in (0, 1], or True: {WARMUP_EXPONENT:g}",
    ("maximize",): "ascend",
    ("backend",): '"fused", "foreach", "reference" ([backends](docs/backends.md))',
    ("capturable",): "the step's numbers on the device, for CUDA graphs (not run on a GPU by us)",
    ("state_bits", "block_size"): "bits of a moment: 32, 16 or 8, and elements of a block of 8-bit ones",
    ("bf16_stochastic_round", "seed"): "round bfloat16 parameters so that small updates are not lost",
}
FOR_INTEGRATIONS = ("float32_apart", "regroup")  # in the docstring of ADOPT only


def keys() -> str:
    """The keys of `optim_args`, `betas` beside the two that it stands for."""
    names = [name for name in optim_args.KEYS if name != "betas"]
    names.insert(names.index("beta2") + 1, "betas")
    return code(names)


def deepspeed_keys() -> str:
    """The keys of `params` in an `"optimizer"` block."""
    return code(ds_config.KEYS)


def code(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table() -> str:
    """Each option with the defaults of the classes and of the Trainer.

    Raises:
        ValueError: If an argument of a class has no row, or a row has no argument.
    """
    classes = {name: defaults(getattr(adopt_hf, name)) for name in CLASSES if hasattr(adopt_hf, name)}
    listed = [name for names in WORDS for name in names]
    for name, found in classes.items():
        if sorted(found) != sorted(listed):
            raise ValueError(f"the arguments of {name} are {sorted(found)}, the rows of WORDS {sorted(listed)}")
    trainer = of_trainer()
    head = ["option", *(f"`{name}`" for name in classes), '`optim="adopt"`', "its field", "meaning"]
    lines = [head, ["---"] * len(head)]
    for names, words in WORDS.items():
        values = [", ".join(shown(found[name]) for name in names) for found in [*classes.values(), trainer]]
        lines.append([code(names), *values, ", ".join(filter(None, map(field, names))), words])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def defaults(cls: type) -> dict[str, Any]:
    """The defaults of a class's arguments, and of those that it hands on to the class before it."""
    found: dict[str, Any] = {}
    for one in (adopt_hf.ADOPT, cls):
        taken = inspect.signature(one.__init__).parameters.values()
        found |= {p.name: p.default for p in taken if p.default is not p.empty}
    return {name: default for name, default in found.items() if name not in FOR_INTEGRATIONS}


@cache
def of_trainer() -> dict[str, Any]:
    """The numbers of the param group that the Trainer makes if nothing is set."""
    from transformers import TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, optim="adopt", report_to="none", use_cpu=True)
        cls, kwargs = adopt_hf.trainer_kwargs(args)
    group: dict[str, Any] = cls([torch.nn.Parameter(torch.zeros(1))], **kwargs).param_groups[0]
    return group | kwargs  # beta2_warmup=True is a number in the group


def field(name: str) -> str:
    """The field of TrainingArguments that sets an option, if there is one besides `optim_args`."""
    adams = [fields.ADAM[one] for one in (("beta1", "beta2") if name == "betas" else (name,)) if one in fields.ADAM]
    return code(adams or [FIELDS[name]] if adams or name in FIELDS else [])


def shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else f"{value}"


TEXTS: dict[str, Callable[[], str]] = {"options": table, "optim args": keys, "deepspeed block": deepspeed_keys}
