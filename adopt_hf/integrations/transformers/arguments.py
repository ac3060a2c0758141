"""The optimizer that TrainingArguments ask for: its class, its numbers, and what of them a user has set."""

import functools
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from adopt_hf.hyperparameters import DEFAULTS, HYPERPARAMETERS, LORAPLUS, OF_ADOPTW, OF_OPTIMIZER
from adopt_hf.integrations import peft
from adopt_hf.integrations.transformers import fields, names, optim_args
from adopt_hf.integrations.transformers.groups import Regroup
from adopt_hf.integrations.transformers.names import EIGHT_BITS, LAYERWISE, NAME
from adopt_hf.layerwise import LayerwiseADOPTW
from adopt_hf.optimizer import ADOPT, ADOPTW, is_adopt_optimizer
from adopt_hf.param_groups import embeddings
from adopt_hf.state import formats

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

logger = logging.getLogger("adopt_hf")


def trainer_kwargs(args: "TrainingArguments", model: "nn.Module | None" = None) -> tuple[type[ADOPTW], dict[str, Any]]:
    """The optimizer class and its arguments for a Trainer: `Trainer(optimizer_cls_and_kwargs=trainer_kwargs(args))`.

    `optim_args` beats the fields of TrainingArguments, they beat ADOPT's defaults. `adam_beta1`, `adam_beta2` and
    `adam_epsilon` at their own (Adam's) defaults count as not set, unless they were assigned after construction, as a
    trial of a hyperparameter search does; one that was written and is not used is a WARNING. The class is ADOPTW:
    unless `optim_args` says otherwise weight decay is decoupled, because that is what `weight_decay` means under the
    Trainer, and `beta2_warmup` is on. One INFO line says which numbers are used.

    The class is called with the param groups of the Trainer, or of a subclass, and with these arguments. In the groups
    a `weight_decay` of `optim_args` then replaces the one of TrainingArguments. LoRA+ replaces the groups.

    Args:
        args: the training arguments; they are not changed.
        model: the model that the Trainer trains. LoRA+ (`loraplus_lr_ratio` in `optim_args`) needs it: its groups hold
            the parameters as they are now, so give a model that will not be wrapped or sharded, or write
            `optim="adopt"`. 8-bit moments need it to find the embeddings, whose moments stay in float32.

    Raises:
        ValueError: `optim_args` or a field has a value that ADOPT does not allow; says what is allowed. Or LoRA+ is
            asked for, and there is no model, or one without LoRA. When the optimizer is made: the param groups do not
            show which numbers `optim_args` replaces, or embeddings are to be found without the model.
        ImportError: LoRA+ is asked for, and peft is not installed.
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
    """`Trainer.get_optimizer_cls_and_kwargs` that makes ADOPT of ADOPT's names."""
    return trainer_kwargs(args, model) if args.optim in names.registered else original(args, model)


def _layerwise(args: "TrainingArguments") -> type[ADOPTW]:
    """LayerwiseADOPTW, if it can do what is asked for.

    Raises:
        ValueError: it cannot; says what would have to be set.
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
    """Log what the run uses in one INFO line, and warn if that is not what was written in `args`."""
    of_loraplus = {} if loraplus is None else dict(zip(LORAPLUS, loraplus, strict=True))
    said = (f"{name}={value}" for name, value in {**numbers, **of_loraplus}.items())
    logger.info("ADOPT runs with %s", ", ".join(said))
    beta1, beta2 = numbers.get("betas", DEFAULTS["betas"])
    fields.warn_of_replaced(args, {"beta1": beta1, "beta2": beta2, "eps": numbers.get("eps", DEFAULTS["eps"])})


class Resolved(NamedTuple):
    """What TrainingArguments stand for, checked."""

    kwargs: dict[str, Any]  # the arguments of ADOPT
    set_by_user: dict[str, Any]  # those of them that somebody has set, "beta1" and "beta2" one by one
    loraplus: peft.LoraPlus | None


def resolve(args: "TrainingArguments") -> Resolved:
    """Read `args`.

    `lr` and `weight_decay` count as set: TrainingArguments has no value for them that means anything else.
    """
    given = optim_args.parse(args.optim_args)
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
    checked = ADOPT([{"params": []}], **kwargs).defaults  # now, with ADOPT's own words
    return Resolved({name: checked[name] for name in kwargs}, set_by_user, loraplus)


def asks_for_adopt(trainer: Any) -> bool:
    """Return whether the Trainer builds ADOPT, by one of the names or by the class that it was given."""
    return trainer.args.optim in names.registered or was_given_the_class(trainer)


def was_given_the_class(trainer: Any) -> bool:
    """Whether the Trainer has ADOPT, or a class derived from it, in `optimizer_cls_and_kwargs`."""
    cls = (getattr(trainer, "optimizer_cls_and_kwargs", None) or (None,))[0]
    return is_adopt_optimizer(cls)
