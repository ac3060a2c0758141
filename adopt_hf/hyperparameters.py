"""The table of all options of ADOPT: type, default, range, kind and a line of help.

All lists and checks of options are views of `HYPERPARAMETERS`: the defaults of the classes, the keys of `optim_args`
and of a DeepSpeed block, the options that a load keeps, and the tables of the docs.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max  # larger numbers are inf in float32 arithmetic
WARMUP_EXPONENT = 1.0  # the value of beta2_warmup=True
RUNNING_MEAN = 1.0  # the value of True in states of earlier versions
BLOCK_SIZES = tuple(2**i for i in range(6, 12))

# The kinds of options. update: numbers of the update, which a load replaces. execution: how the update is computed, and
# storage: how the state is stored; a load changes neither. recipe: param groups, before the optimizer is created.
# trainer: a callback of the Trainer.
Kind = Literal["update", "execution", "storage", "recipe", "trainer"]


@dataclass(frozen=True)
class Hyperparameter:
    """An option: its type, its default, and its range, `low <= x < high`, or its values.

    An option with `true` is False, a number in `low < x <= high`, or True, which stands for the number `true`.
    """

    type: type[float] | type[int] | type[bool] | type[str]
    default: float | bool | str
    kind: Kind
    help: str
    high: float = LARGEST
    optional: bool = False
    low: float = 0.0
    values: tuple[int, ...] | tuple[str, ...] = ()
    true: float | None = None
    of_adoptw: bool | None = None  # the default of ADOPTW, if it differs

    @property
    def allowed(self) -> str:
        """The accepted values, in words."""
        if self.type is bool:
            return "True or False"
        if self.true is not None:
            return f"True, False or a number in ({self.low:g}, {self.high:g}]"
        if self.values:
            return f"one of {', '.join(map(repr, self.values))}"
        if self.type is int:
            return f"a whole number in [{self.low:g}, {self.high:g})"
        interval = f"a number in [{self.low:g}, {self.high:g})"
        if self.high >= LARGEST:
            interval = f"a finite number >= {self.low:g}"
        return f"{interval} or None" if self.optional else interval

    def check(self, name: str, value: object) -> Any:
        """Return `value` as a plain Python float, int, bool, str or None.

        Raises:
            ValueError: If the value is outside the range or of another type. The message names `name`, the value and
                the allowed values.
        """
        if self.optional and value is None:
            return None
        if self.type is bool:
            if isinstance(value, bool):
                return value
        elif self.type is str:
            if isinstance(value, str) and value in self.values:
                return value
        elif self.true is not None:
            if isinstance(value, bool):
                return self.true if value else False
            if isinstance(value, Real) and self.low < cast(float, value) <= self.high:
                return float(value)
        elif isinstance(value, Real) and not isinstance(value, bool) and self.low <= cast(float, value) < self.high:
            if self.type is float:
                return float(value)
            whole: int = operator.index(math.trunc(value))
            if value == whole and (not self.values or whole in self.values):
                return whole
        raise ValueError(f"{name} must be {self.allowed}, got {value!r}")


HYPERPARAMETERS = {
    "lr": Hyperparameter(float, 1e-3, "update", "learning rate: a float or a one-element tensor"),
    "beta1": Hyperparameter(float, 0.9, "update", "decay rate of the first moment, in [0, 1)", high=1.0),
    "beta2": Hyperparameter(float, 0.9999, "update", "decay rate of the second moment, in [0, 1)", high=1.0),
    "eps": Hyperparameter(float, 1e-6, "update", "lower bound of sqrt(v)"),
    "weight_decay": Hyperparameter(float, 0.0, "update", "L2 term of the gradient, or decoupled decay"),
    "decouple": Hyperparameter(bool, False, "update", "decoupled weight decay as in AdamW; else L2", of_adoptw=True),
    "clip_exp": Hyperparameter(
        float,
        0.25,
        "update",
        "exponent of the clip t^clip_exp of the normalised gradient; `None`: no clip",
        high=5.0,  # t counts in float32 up to 2**24
        optional=True,
    ),
    "beta2_warmup": Hyperparameter(
        float,
        False,
        "update",
        f"exponent k of the warm-up min(beta2, 1 - (t+1)^-k), in (0, 1]; True: {WARMUP_EXPONENT:g}",
        high=1.0,
        true=WARMUP_EXPONENT,
        of_adoptw=True,
    ),
    "maximize": Hyperparameter(bool, False, "update", "ascend instead of descend"),
    "backend": Hyperparameter(
        str,
        "auto",
        "execution",
        'what computes a step: "auto", "fused", "foreach" or "reference"',
        values=("auto", "fused", "foreach", "reference"),
    ),
    "capturable": Hyperparameter(
        bool, False, "execution", "keep the step's numbers on the device, for CUDA graphs (we have not run it on a GPU)"
    ),
    "state_bits": Hyperparameter(int, 32, "storage", "bits of each moment: 32, 16 or 8", values=(8, 16, 32)),
    "block_size": Hyperparameter(int, 256, "storage", "elements per block of 8-bit moments", values=BLOCK_SIZES),
    "bf16_stochastic_round": Hyperparameter(
        bool, False, "storage", "round bfloat16 parameters stochastically, which keeps small updates"
    ),
    "seed": Hyperparameter(int, 0, "update", "seed of stochastic rounding", high=2.0**63),
    # peft's range and default: B learns as fast as A, or faster
    "loraplus_lr_ratio": Hyperparameter(float, 1.0, "recipe", "LoRA+: learning rate of B over that of A", low=1.0),
    "loraplus_lr_embedding": Hyperparameter(float, 1e-6, "recipe", "LoRA+: learning rate of embeddings"),
    "monitor": Hyperparameter(bool, False, "trainer", "log what the steps do ([monitor](docs/monitor.md))"),
}
LORAPLUS = tuple(name for name, row in HYPERPARAMETERS.items() if row.kind == "recipe")
OF_TRAINER = tuple(name for name, row in HYPERPARAMETERS.items() if row.kind == "trainer")
OF_OPTIMIZER = tuple(name for name in HYPERPARAMETERS if name not in (*LORAPLUS, *OF_TRAINER))


def of_group(*kinds: Kind) -> tuple[str, ...]:
    """Return the options of these kinds in a param group, which has `betas` instead of beta1 and beta2."""
    names = [name for name, row in HYPERPARAMETERS.items() if row.kind in kinds and name != "beta2"]
    return tuple("betas" if name == "beta1" else name for name in names)


OPTIONS = of_group("update", "execution", "storage")
DEFAULTS: dict[str, Any] = {  # of a param group of ADOPT
    **{name: HYPERPARAMETERS[name].default for name in OPTIONS if name != "betas"},
    "betas": (HYPERPARAMETERS["beta1"].default, HYPERPARAMETERS["beta2"].default),
}
OF_ADOPTW: dict[str, Any] = {  # the defaults that differ from ADOPT's
    name: row.of_adoptw for name, row in HYPERPARAMETERS.items() if row.of_adoptw is not None
}

# Options of other optimizers, and what to write instead.
INSTEAD = {
    "clip_lambda": (
        "write clip_exp=0.25 for clip_lambda=lambda step: step**0.25 (any other exponent likewise), "
        "or clip_exp=None for clip_lambda=None"
    ),
    "beta1": "write betas=(beta1, beta2)",
    "beta2": "write betas=(beta1, beta2)",
    "decoupled": "write decouple=True",
    "weight_decouple": "write decouple=True",
    "foreach": "write backend='foreach' or backend='reference'",
    "fused": "write backend='fused'",
    "differentiable": (
        "it is not supported. Autograd does not record the step, so no hyperparameter gets a gradient, not even an lr "
        "that is a tensor with requires_grad=True"
    ),
}


def refuse(kind: str, names: Iterable[str]) -> None:
    """Raise TypeError if `names` is not empty. The message says what to write instead of the first name.

    Args:
        kind: Kind of the names, for the message.
        names: Names that ADOPT does not have.
    """
    for name in names:
        hint = INSTEAD.get(name)
        raise TypeError(f"ADOPT has no {kind} {name!r}" + (f": {hint}" if hint else ""))


def check_betas(betas: object) -> tuple[float, float]:
    """Return `betas` as a pair of floats.

    Args:
        betas: Sequence of two numbers (a tuple, a list, the list of a configuration library), or an array.

    Raises:
        ValueError: If `betas` is not a pair, or a beta is outside [0, 1).
    """
    if isinstance(betas, Tensor) and betas.is_meta:
        raise ValueError(f"betas must be a pair (beta1, beta2) of numbers in [0, 1), got {betas!r}, without numbers")
    pair = betas.tolist() if hasattr(betas, "tolist") else betas  # numpy arrays are not sequences
    if not isinstance(pair, Sequence) or isinstance(pair, str | bytes | bytearray) or len(pair) != 2:
        raise ValueError(f"betas must be a pair (beta1, beta2) of numbers in [0, 1), got {betas!r}")
    beta1 = HYPERPARAMETERS["beta1"].check("beta1 = betas[0]", pair[0])
    beta2 = HYPERPARAMETERS["beta2"].check("beta2 = betas[1]", pair[1])
    return cast(float, beta1), cast(float, beta2)


def check_lr(lr: object) -> float | Tensor:
    """Return `lr` as a float or a one-element tensor. Raise ValueError if it is negative or not finite."""
    if not isinstance(lr, Tensor):
        return cast(float, HYPERPARAMETERS["lr"].check("lr", lr))
    if lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, got shape {tuple(lr.shape)}")
    if not lr.is_floating_point():
        raise ValueError(f"Tensor lr must be floating point, got {lr.dtype}")
    if lr.is_meta:
        raise ValueError("Tensor lr must hold a number, got a tensor on the meta device, which holds none")
    HYPERPARAMETERS["lr"].check("lr", lr.item())
    return lr


def check_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options in a param group, and return them as plain values.

    Raises:
        ValueError: If a value is outside its range. The message names the value and the range.
    """
    checked: dict[str, Any] = {}
    for name, value in group.items():
        if name == "betas":
            checked[name] = check_betas(value)
        elif name == "lr":
            checked[name] = check_lr(value)
        elif name in OPTIONS:
            checked[name] = HYPERPARAMETERS[name].check(name, value)
    return checked


def check_numbers(group: Mapping[str, Any]) -> None:
    """Check the numbers of a param group, which a schedule can have written since the last check.

    A tensor `lr` of a capturable group is not read, because that would wait for its device.

    Raises:
        ValueError: If a number is outside its range. The message names the number and the range.
    """
    try:
        are_within = _are_within(group)
    except TypeError:  # not numbers
        are_within = False
    if not are_within:
        check_group(group)


def _are_within(group: Mapping[str, Any]) -> bool:
    lr, (beta1, beta2), clip_exp = group["lr"], group["betas"], group["clip_exp"]
    if isinstance(lr, Tensor):
        lr = 0.0 if group.get("capturable") else lr.item()
    return bool(
        0 <= lr < LARGEST
        and 0 <= beta1 < 1
        and 0 <= beta2 < 1
        and 0 <= group["eps"] < LARGEST
        and 0 <= group["weight_decay"] < LARGEST
        and (clip_exp is None or 0 <= clip_exp < HYPERPARAMETERS["clip_exp"].high)
        and 0 <= group["beta2_warmup"] <= 1  # False is 0, and check_group refuses 0 itself
    )


def upgrade(defaults: dict[str, Any], groups: Iterable[dict[str, Any]]) -> None:
    """Add the options that a pickle of an earlier version lacks to its defaults and param groups, in place."""
    for name, default in DEFAULTS.items():
        defaults.setdefault(name, default)
    for group in (defaults, *groups):
        keep_running_mean(group)
        for name, default in defaults.items():
            group.setdefault(name, default)


def keep_running_mean(group: dict[str, Any]) -> None:
    """Replace True in a group of an earlier version by the exponent that True stood for, in place."""
    if group.get("beta2_warmup") is True:
        group["beta2_warmup"] = RUNNING_MEAN
