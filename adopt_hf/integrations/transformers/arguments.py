"""The optimizer that TrainingArguments ask for: its class, its arguments, and those of them that a user has set."""

import functools
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from adopt_hf.hyperparameters import DEFAULTS, HYPERPARAMETERS, LORAPLUS, OF_ADOPTW, OF_OPTIMIZER
from adopt_hf.identity import is_adopt_optimizer
from adopt_hf.integrations import peft
from adopt_hf.integrations.transformers import fields, monitor, names, optim_args
from adopt_hf.integrations.transformers.groups import Regroup
from adopt_hf.integrations.transformers.names import EIGHT_BITS, LAYERWISE, NAME
from adopt_hf.layerwise import LayerwiseADOPTW
from adopt_hf.optimizer import ADOPT, ADOPTW
from adopt_hf.param_groups import embeddings
from adopt_hf.state import formats

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

logger = logging.getLogger("adopt_hf")


def trainer_kwargs(args: "TrainingArguments", model: "nn.Module | None" = None) -> tuple[type[ADOPTW], dict[str, Any]]:
    """Return the optimizer class and its arguments: `Trainer(optimizer_cls_and_kwargs=trainer_kwargs(args))`.

    `optim_args` takes precedence over the fields of TrainingArguments, and these over ADOPT's defaults. The fields
    `adam_beta1`, `adam_beta2` and `adam_epsilon` count as not set if they equal Adam's defaults. They count as set if
    they were assigned after construction, as a trial of a hyperparameter search does. A field that was written and is
    not used is a WARNING.

    The class is ADOPTW: weight decay is decoupled, because `weight_decay` means that under the Trainer, and
    `beta2_warmup` is on. `optim_args` can change both. One INFO line says which numbers are used.

    The class is called with these arguments and the param groups of the Trainer, or of a subclass. A `weight_decay` in
    `optim_args` then replaces that of TrainingArguments in the groups. LoRA+ replaces the groups.

    Args:
        args: The training arguments. They are not changed.
        model: The model that the Trainer trains. LoRA+ (`loraplus_lr_ratio` in `optim_args`) needs it. Its groups hold
            the present parameters, so give a model that will not be wrapped or sharded, or write `optim="adopt"`. 8-bit
            moments need the model to find the embeddings, whose moments stay in float32.

    Raises:
        ValueError: If `optim_args` or a field has a value that ADOPT does not allow. The message says what is allowed.
            Also if LoRA+ is asked for without a model, or with a model without LoRA. When the optimizer is
            made, also if the param groups do not show which numbers `optim_args` replaces. Also if only the model could
            show which parameters are embeddings.
        ImportError: If LoRA+ is asked for, and peft is not installed.
    """
    kwargs, _, loraplus = resolve(args)
    cls = _layerwise(args) if args.optim == LAYERWISE else ADOPTW
    if model is not None:
        formats.keep_float32(embeddings(model))
    groups = None
    if loraplus is not None:
        groups = peft.loraplus_groups(model, loraplus, kwargs["lr"], kwargs["weight_decay"])
    say(args, kwargs, loraplus)
    if kwargs["state_bits"] == 8 and args.deepspeed_plugin is not None:
        kwargs["float32_apart"] = True
    ours = {"weight_decay": args.weight_decay, "lr": args.learning_rate}
    regroup = Regroup(
        **{name: (field, kwargs[name]) for name, field in ours.items() if field != kwargs[name] and groups is None},
        loraplus=groups,
        unseen_embeddings=model is None and kwargs["state_bits"] == 8,
    )
    return cls, {**kwargs, "regroup": regroup} if regroup else kwargs


def get_optimizer_cls_and_kwargs(original: Any, args: "TrainingArguments", model: "nn.Module | None" = None) -> Any:
    """Return ADOPT from `Trainer.get_optimizer_cls_and_kwargs` if `optim` is one of ADOPT's names."""
    return trainer_kwargs(args, model) if args.optim in names.registered else original(args, model)


def _layerwise(args: "TrainingArguments") -> type[ADOPTW]:
    """Return LayerwiseADOPTW, if it can do what the training arguments ask for.

    Raises:
        ValueError: If it cannot. The message says which argument to change.
    """
    unset = fields.default(args, "max_grad_norm")
    refused = {
        f"gradient_accumulation_steps={args.gradient_accumulation_steps}: set it to 1": (
            args.gradient_accumulation_steps != 1
        ),
        f"max_grad_norm={args.max_grad_norm}: set it to 0": args.max_grad_norm not in (0, None, unset),
        f"{args.world_size} processes: start one": args.world_size > 1,
        "several GPUs in one process: set CUDA_VISIBLE_DEVICES to one of them": args.n_gpu > 1,
        "fp16, whose gradients are scaled: use bf16": args.fp16,
        "auto_find_batch_size, which goes on after half a backward(): set the batch size": args.auto_find_batch_size,
        "DeepSpeed: leave it out": bool(args.deepspeed),
        "FSDP: leave it out": bool(args.fsdp),
    }
    for what, is_asked in refused.items():
        if is_asked:
            raise ValueError(
                f'optim="{LAYERWISE}" updates each parameter as its gradient becomes ready, and all gradients never '
                f'exist at once. That cannot be combined with {what}, or write optim="{NAME}"'
            )
    if fields.is_written_default(args, "max_grad_norm"):
        _warn_of_clipping(args.max_grad_norm)
    return LayerwiseADOPTW


@functools.cache  # once a process
def _warn_of_clipping(norm: float) -> None:
    logger.warning(
        "max_grad_norm=%s was given, and optim=%r cannot clip gradients by their norm, since they never exist at once: "
        "nothing is clipped. ADOPT bounds each element of its update itself; write max_grad_norm=0",
        norm,
        LAYERWISE,
    )


def say(args: "TrainingArguments", numbers: dict[str, Any], loraplus: peft.LoraPlus | None) -> None:
    """Log the numbers of the run in one INFO line, and warn if a number that was written in `args` is not used."""
    of_loraplus = {} if loraplus is None else dict(zip(LORAPLUS, loraplus, strict=True))
    said = (f"{name}={value}" for name, value in {**numbers, **of_loraplus}.items())
    logger.info("ADOPT runs with %s", ", ".join(said))
    beta1, beta2 = numbers.get("betas", DEFAULTS["betas"])
    fields.warn_of_replaced(args, {"beta1": beta1, "beta2": beta2, "eps": numbers.get("eps", DEFAULTS["eps"])})


class Resolved(NamedTuple):
    """The numbers that TrainingArguments ask for, checked."""

    kwargs: dict[str, Any]  # the arguments of ADOPT
    set_by_user: dict[str, Any]  # those that a user has set, "beta1" and "beta2" one by one
    loraplus: peft.LoraPlus | None


def resolve(args: "TrainingArguments") -> Resolved:
    """Return the numbers that `args` ask for.

    `lr` and `weight_decay` always count as set, because no value of these two fields means "not set".
    """
    given = optim_args.parse(args.optim_args)
    if given.pop("monitor", False):
        monitor.check_trainer()
    loraplus = peft.take_loraplus(given)
    values: dict[str, Any] = {
        **{name: HYPERPARAMETERS[name].default for name in OF_OPTIMIZER},
        **OF_ADOPTW,
        "seed": args.seed,
    }
    if args.optim == EIGHT_BITS:
        values["state_bits"] = 8
    set_by_user = {
        "lr": args.learning_rate,
        "weight_decay": args.weight_decay,
        **fields.set_by_user(args),
        **given,
    }
    values |= set_by_user
    kwargs = {"lr": values.pop("lr"), "betas": (values.pop("beta1"), values.pop("beta2")), **values}
    checked = ADOPT([{"params": []}], **kwargs).defaults  # raises ADOPT's own errors
    return Resolved({name: checked[name] for name in kwargs}, set_by_user, loraplus)


def asks_for_adopt(trainer: Any) -> bool:
    """Return whether the Trainer builds ADOPT, by one of the names or by the class that it was given."""
    return trainer.args.optim in names.registered or was_given_the_class(trainer)


def was_given_the_class(trainer: Any) -> bool:
    """Return whether the Trainer has ADOPT, or a class derived from it, in `optimizer_cls_and_kwargs`."""
    cls = (getattr(trainer, "optimizer_cls_and_kwargs", None) or (None,))[0]
    return is_adopt_optimizer(cls)
