"""The name `adopt` in `transformers.TrainingArguments`, and the optimizer that the Trainer makes of it."""

import dataclasses
import functools
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from adopt_hf.algorithm import HYPERPARAMETERS
from adopt_hf.integrations import compat, deepspeed, deepspeed_adam, fields, guard, optim_args, peft, zero
from adopt_hf.integrations.groups import Regroup
from adopt_hf.layerwise import LayerwiseADOPTW
from adopt_hf.optimizer import ADOPT, ADOPTW, DEFAULTS, OF_ADOPTW, is_adopt_optimizer
from adopt_hf.param_groups import embeddings
from adopt_hf.state import formats

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

NAME = "adopt"
EIGHT_BITS, LAYERWISE = "adopt_8bit", "adopt_layerwise"
NAMES = (NAME, EIGHT_BITS, LAYERWISE)
_registered: set[str] = set()  # those of them that mean this package's ADOPT: a transformers may have one itself

logger = logging.getLogger("adopt_hf")


def add_names() -> None:
    """Make `TrainingArguments(optim="adopt")` and `--optim adopt` mean ADOPT."""
    for name in NAMES:
        if compat.add_optimizer_name(name, _reduce_optimizer_name):
            _registered.add(name)
        else:
            logger.warning(
                "transformers has optim=%r itself: that name builds the optimizer of transformers, and not adopt_hf's. "
                "For adopt_hf's write Trainer(optimizer_cls_and_kwargs=adopt_hf.trainer_kwargs(args))",
                name,
            )


def explain_names(reason: str) -> None:
    """Let every use of the names raise ImportError(reason), instead of what `add_names` has made of them."""
    _registered.clear()
    for name in NAMES:
        compat.remove_optimizer_name(name)
        compat.explain_optimizer_name(name, reason)
    compat.refuse_trainer_optimizers(NAMES, reason)


def remove_names() -> None:
    """Undo `add_names` and `explain_names`, but for what the Trainer does with them."""
    for name in NAMES:
        compat.remove_optimizer_name(name)
    _registered.clear()


def patch_trainer() -> None:
    """Let the Trainer make ADOPT for the names, and load checkpoints and weights as ADOPT needs it."""
    compat.wrap_trainer_optimizers(_registered, trainer_kwargs)
    compat.wrap_trainer_load(_load)
    compat.wrap_fsdp_load(compat.TRAINER, guard.load_fsdp_optimizer)
    compat.wrap_deepspeed_init(_deepspeed_init)


def unpatch_trainer() -> None:
    """Undo `patch_trainer`."""
    compat.unwrap_trainer_optimizers()
    compat.unwrap_trainer_load()
    compat.unwrap_fsdp_load(compat.TRAINER)
    compat.unwrap_deepspeed_init()


def patch_deepspeed() -> None:
    """Let the Trainer fill the "optimizer" block of a DeepSpeed config by ADOPT's rules."""
    compat.wrap_trainer_deepspeed(_process_deepspeed_config, _deepspeed_optimizer)


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
    kwargs, _, loraplus = _resolve(args)
    cls = _layerwise(args) if args.optim == LAYERWISE else ADOPTW
    if model is not None:
        formats.keep_float32(embeddings(model))
    groups = None
    if loraplus is not None:
        groups = peft.loraplus_groups(model, loraplus, kwargs["lr"], kwargs["weight_decay"])
    _say(args, kwargs, loraplus)
    if kwargs["state_bits"] == 8 and args.deepspeed_plugin is not None:
        kwargs["float32_apart"] = True
    ours = {"weight_decay": args.weight_decay, "lr": args.learning_rate}
    regroup = Regroup(
        **{name: (field, kwargs[name]) for name, field in ours.items() if field != kwargs[name] and groups is None},
        loraplus=groups,
        unseen_embeddings=model is None and kwargs["state_bits"] == 8,
    )
    return cls, {**kwargs, "regroup": regroup} if regroup else kwargs


def _layerwise(args: "TrainingArguments") -> type[ADOPTW]:
    """LayerwiseADOPTW, if it can do what is asked for.

    Raises:
        ValueError: it cannot; says what would have to be set.
    """
    default: Any = {f.name: f.default for f in dataclasses.fields(args)}["max_grad_norm"]
    refused = {
        f"gradient_accumulation_steps={args.gradient_accumulation_steps}: set it to 1": (
            args.gradient_accumulation_steps != 1
        ),
        f"max_grad_norm={args.max_grad_norm}: set it to 0": args.max_grad_norm not in (0, None, default),
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
    if args.max_grad_norm == default and args.max_grad_norm is not default:  # written, as in fields.warn_of_replaced
        _warn_of_clipping(default)
    return LayerwiseADOPTW


@functools.cache  # once a process
def _warn_of_clipping(norm: float) -> None:
    logger.warning(
        "max_grad_norm=%s was given, and optim=%r cannot clip gradients by their norm, since they never exist at once: "
        "nothing is clipped. ADOPT bounds each element of its update itself; write max_grad_norm=0",
        norm,
        LAYERWISE,
    )


def _say(args: "TrainingArguments", numbers: dict[str, Any], loraplus: peft.LoraPlus | None) -> None:
    """Log what the run uses in one INFO line, and warn if that is not what was written in `args`."""
    of_loraplus = {} if loraplus is None else dict(zip(peft.HYPERPARAMETERS, loraplus, strict=True))
    said = (f"{name}={value}" for name, value in {**numbers, **of_loraplus}.items())
    logger.info("ADOPT runs with %s", ", ".join(said))
    beta1, beta2 = numbers.get("betas", DEFAULTS["betas"])
    fields.warn_of_replaced(args, {"beta1": beta1, "beta2": beta2, "eps": numbers.get("eps", DEFAULTS["eps"])})


class _Resolved(NamedTuple):
    """What TrainingArguments stand for, checked."""

    kwargs: dict[str, Any]  # the arguments of ADOPT
    set_by_user: dict[str, Any]  # those of them that somebody has set, "beta1" and "beta2" one by one
    loraplus: peft.LoraPlus | None


def _resolve(args: "TrainingArguments") -> _Resolved:
    """Read `args`.

    `lr` and `weight_decay` count as set: TrainingArguments has no value for them that means anything else.
    """
    given = optim_args.parse(args.optim_args)
    loraplus = peft.take_loraplus(given)
    values: dict[str, Any] = {
        **{name: hyperparameter.default for name, hyperparameter in HYPERPARAMETERS.items()},
        **OF_ADOPTW,
        "backend": "auto",
        "capturable": False,
        **{name: option.default for name, option in formats.OPTIONS.items()},
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
    return _Resolved({name: checked[name] for name in kwargs}, set_by_user, loraplus)


def _load(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """A method of the Trainer that loads weights: an adapter's precision is unchanged if ADOPT trains it.

    The best model is taken from its file if the optimizer is an ADOPT on NVMe.
    """
    if (
        original.__name__ == "_load_best_model"
        and trainer.is_deepspeed_enabled
        and zero.is_on_nvme(trainer.model_wrapped)
    ):
        return zero.load_weights(trainer.model_wrapped, trainer.state.best_model_checkpoint)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if trainer.args.optim in _registered or is_adopt_optimizer(optimizer) or _was_given_the_class(trainer):
        return peft.keep_precision(original, trainer, *args, **kwargs)
    return original(trainer, *args, **kwargs)


def _was_given_the_class(trainer: Any) -> bool:
    """Whether the Trainer has ADOPT, or a class derived from it, in `optimizer_cls_and_kwargs`."""
    cls = (getattr(trainer, "optimizer_cls_and_kwargs", None) or (None,))[0]
    return is_adopt_optimizer(cls)


# -- DeepSpeed under the Trainer ---------------------------------------------------------------------------------------


def _process_deepspeed_config(
    original: Any, hf_config: Any, args: "TrainingArguments", *rest: Any, **kwargs: Any
) -> Any:
    """`trainer_config_process` that fills ADOPT's block by ADOPT's rules, and refuses another beside `optim="adopt"`.

    Raises:
        ValueError: `optim="adopt"`, and the DeepSpeed config has another optimizer.
    """
    config = hf_config.config
    if deepspeed.is_adopt_block(config):
        block = config.pop("optimizer")  # hidden from the original, which knows Adam's fields alone
        try:
            result = original(hf_config, args, *rest, **kwargs)
        finally:
            config["optimizer"] = block
        hf_config.mismatches += _fill_block(config, args)
        return result
    if args.optim in _registered and "optimizer" in config:
        raise ValueError(
            f'optim="{getattr(args.optim, "value", args.optim)}" asks for ADOPT, and {_another_block(config)}'
        )
    return original(hf_config, args, *rest, **kwargs)


def _another_block(config: dict[str, Any]) -> str:
    block = config["optimizer"]
    other = block.get("type") if isinstance(block, dict) else block
    return (
        f'the "optimizer" block of the DeepSpeed config for {other!r}: remove that block (the line "optimizer": '
        f'{{"type": "{other}", ...}}) to train with ADOPT, or write "type": "ADOPT" in it'
    )


def _deepspeed_init(original: Any, trainer: Any, *rest: Any, **kwargs: Any) -> Any:
    """`deepspeed_init` that does not drop an ADOPT which the Trainer was given.

    Raises:
        ValueError: it would train with another optimizer, or could not load the best model at the end.
    """
    config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config
    by_class = _was_given_the_class(trainer)
    if by_class or trainer.args.optim in _registered or deepspeed.is_adopt_block(config):
        _refuse_best_model_from_nvme(trainer, config)
    if (by_class or is_adopt_optimizer(trainer.optimizer)) and not deepspeed.is_adopt_block(config):
        if "optimizer" in config:
            raise ValueError(f"the Trainer was given ADOPT, and {_another_block(config)}")
        if not by_class and trainer.args.optim not in _registered:
            raise ValueError(
                f"the Trainer was given an ADOPT in `optimizers`, which it drops under DeepSpeed to build "
                f'optim="{trainer.args.optim.value}": write optim="{NAME}", or give optimizer_cls_and_kwargs'
            )
    return original(trainer, *rest, **kwargs)


def _refuse_best_model_from_nvme(trainer: Any, config: dict[str, Any]) -> None:
    """Raise ValueError if the best model is to be loaded at the end and only the optimizer's disk will have it."""
    optimization = config.get("zero_optimization") or {}
    if not trainer.args.load_best_model_at_end or deepspeed_adam.offload_device(config) != "nvme":
        return
    gathered = ("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save")
    missing = ""
    if hasattr(trainer.model, "peft_config"):
        missing = "with an adapter that is not possible: leave load_best_model_at_end out"
    elif not any(optimization.get(key) for key in gathered):
        missing = f'write "{gathered[0]}": true in "zero_optimization" of the DeepSpeed config'
    if missing:
        raise ValueError(
            "load_best_model_at_end=True with the optimizer on NVMe: DeepSpeed does not load weights from such a "
            f"checkpoint, so they are taken from its model.safetensors; {missing}"
        )


def _fill_block(config: dict[str, Any], args: "TrainingArguments") -> list[str]:
    """Make the block of a DeepSpeed config a complete ADOPTW's, in place. Returns what contradicts `args`, by line."""
    wanted, set_by_user, _ = _resolve(args)
    written = deepspeed.block_kwargs(config, auto_is_filled=True)
    betas = dict(zip(("beta1", "beta2"), written.get("betas", ()), strict=False))
    in_block: dict[str, Any] = {**written, **betas}
    mismatches = [
        f"- ds optimizer.params.{'betas' if name in betas else name}={in_block[name]} vs hf {name}={value}"
        for name, value in set_by_user.items()
        if name in in_block and in_block[name] != value
    ]
    config["optimizer"] |= {"type": ADOPTW.__name__, "params": wanted | written}
    return mismatches


def _deepspeed_optimizer(original: Any, trainer: Any, hf_config: Any, *rest: Any, **kwargs: Any) -> Any:
    """`deepspeed_optim_sched` that hands the Trainer's groups to an ADOPT which DeepSpeed builds.

    Raises:
        ValueError: LoRA+ is asked for, and the DeepSpeed config has a scheduler.
    """
    by_deepspeed = deepspeed.is_adopt_block(hf_config.config)
    if by_deepspeed or trainer.args.optim in _registered or _was_given_the_class(trainer):
        _refuse_scheduler(hf_config.config, trainer.args.optim_args)
    optimizer, scheduler = original(trainer, hf_config, *rest, **kwargs)
    if by_deepspeed:
        numbers = deepspeed.block_kwargs(hf_config.config)
        loraplus = _resolve(trainer.args).loraplus
        optimizer.params = _groups(trainer, numbers, loraplus)
        _say(trainer.args, numbers, loraplus)
    return optimizer, scheduler


def _refuse_scheduler(config: dict[str, Any], text: str | None) -> None:
    if "scheduler" in config and "loraplus_lr_ratio" in (text or ""):
        raise ValueError(
            f'optim_args: {text!r} asks for LoRA+, and the "scheduler" block of the DeepSpeed config sets one learning '
            "rate for all param groups: remove that block; lr_scheduler_type and warmup_steps of TrainingArguments "
            "keep the ratio"
        )


def _groups(trainer: Any, numbers: dict[str, Any], loraplus: peft.LoraPlus | None) -> list[dict[str, Any]]:
    """The Trainer's param groups for an ADOPT with `numbers`, none of them empty."""
    if loraplus is not None:
        return peft.loraplus_groups(trainer.model, loraplus, numbers["lr"], numbers["weight_decay"])
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    trainable = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trainable if name in decayed]},
        {"params": [p for name, p in trainable if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _reduce_optimizer_name(member: Any) -> tuple[Any, tuple[str]]:
    """How an OptimizerNames is pickled: ours brings along the import that makes it known again."""
    return (_optimizer_name if member.value in _registered else type(member)), (member.value,)


def _optimizer_name(value: str) -> Any:
    from transformers.training_args import OptimizerNames

    return OptimizerNames(value)
