"""The name `adopt` in `transformers.TrainingArguments`, and the optimizer that the Trainer makes of it."""

import dataclasses
import logging
from typing import TYPE_CHECKING, Any

from adopt_hf.algorithm import HYPERPARAMETERS
from adopt_hf.integrations import compat, optim_args
from adopt_hf.optimizer import ADOPT
from adopt_hf.param_groups import param_groups

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

NAME = "adopt"

logger = logging.getLogger("adopt_hf")


def register() -> None:
    """Make `TrainingArguments(optim="adopt")` and `--optim adopt` mean ADOPT. `import adopt_hf` has done it already.

    A second call does nothing.

    Raises:
        ImportError: transformers is not installed, too old, or has changed what this relies on; says which.
    """
    reason = compat.transformers_mismatch()
    if reason:
        raise ImportError(reason)
    compat.add_optimizer_name(NAME, _reduce_optimizer_name)
    compat.wrap_trainer_optimizers(NAME, trainer_kwargs)


def unregister() -> None:
    """Undo `register()`: transformers is as it was."""
    compat.unwrap_trainer_optimizers()
    compat.remove_optimizer_name(NAME)


def register_on_import() -> None:
    """`register()`, but where transformers does not fit, the error comes when the name is used."""
    reason = compat.transformers_mismatch()
    if reason:
        compat.explain_optimizer_name(NAME, reason)
    else:
        register()


def trainer_kwargs(args: "TrainingArguments", model: "nn.Module | None" = None) -> tuple[type[ADOPT], dict[str, Any]]:
    """The optimizer class and its arguments for a Trainer: `Trainer(optimizer_cls_and_kwargs=trainer_kwargs(args))`.

    `optim_args` beats the fields of TrainingArguments, they beat ADOPT's defaults. `adam_beta1`, `adam_beta2` and
    `adam_epsilon` at their own (Adam's) defaults count as not set. Weight decay is decoupled unless `optim_args` says
    otherwise, because that is what `weight_decay` means under the Trainer. One INFO line says which numbers are used.

    Args:
        args: read, but for one thing: a `weight_decay` in `optim_args` is written to `args.weight_decay`, where the
            Trainer looks for it.
        model: the model that the Trainer trains, if it has made its param groups already; a `weight_decay` in
            `optim_args` then brings new ones.

    Raises:
        ValueError: `optim_args` or a field has a value that ADOPT does not allow; says what is allowed.
    """
    given = optim_args.parse(args.optim_args)
    adam = {"beta1": args.adam_beta1, "beta2": args.adam_beta2, "eps": args.adam_epsilon}
    unset = {f.name: f.default for f in dataclasses.fields(args)}
    adam_unset = {"beta1": unset["adam_beta1"], "beta2": unset["adam_beta2"], "eps": unset["adam_epsilon"]}
    values: dict[str, Any] = {
        **{name: hyperparameter.default for name, hyperparameter in HYPERPARAMETERS.items()},
        "decouple": True,
        "backend": "auto",
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
        **{name: value for name, value in adam.items() if value != adam_unset[name]},
        **given,
    }
    kwargs = {"lr": values.pop("lr"), "betas": (values.pop("beta1"), values.pop("beta2")), **values}
    ADOPT([{"params": []}], **kwargs)  # checks the values now, with ADOPT's own words
    logger.info("ADOPT runs with %s", ", ".join(f"{name}={value}" for name, value in kwargs.items()))

    if "weight_decay" in given and args.weight_decay != given["weight_decay"]:
        args.weight_decay = given["weight_decay"]  # type: ignore[assignment]
        if model is not None:
            return ADOPT, {**kwargs, "params": param_groups(model, args.weight_decay)}
    return ADOPT, kwargs


def _reduce_optimizer_name(member: Any) -> tuple[Any, tuple[str]]:
    """How an OptimizerNames is pickled: ours brings along the import that makes it known again."""
    return (_optimizer_name if member.value == NAME else type(member)), (member.value,)


def _optimizer_name(value: str) -> Any:
    from transformers.training_args import OptimizerNames

    return OptimizerNames(value)
