"""DeepSpeed under the Trainer: ADOPT's block, param groups, optimizers that the Trainer was given, the best model."""

import glob
import os
from typing import TYPE_CHECKING, Any

import torch

from adopt_hf.identity import is_adopt_optimizer
from adopt_hf.integrations import peft
from adopt_hf.integrations.deepspeed import ds_config
from adopt_hf.integrations.transformers import arguments, names, weights
from adopt_hf.integrations.transformers.names import NAME
from adopt_hf.optimizer import ADOPTW

if TYPE_CHECKING:
    from transformers import TrainingArguments


def trainer_config_process(original: Any, hf_config: Any, args: "TrainingArguments", *rest: Any, **kwargs: Any) -> Any:
    """Fill ADOPT's block by ADOPT's rules in `trainer_config_process`, and refuse another block with `optim="adopt"`.

    Raises:
        ValueError: If `optim` is one of ADOPT's names, and the DeepSpeed config has another optimizer.
    """
    config = hf_config.config
    if ds_config.is_adopt_block(config):
        block = config.pop("optimizer")  # hidden from the original, which only knows Adam's fields
        try:
            result = original(hf_config, args, *rest, **kwargs)
        finally:
            config["optimizer"] = block
        hf_config.mismatches += _fill_block(config, args)
        return result
    if args.optim in names.registered and "optimizer" in config:
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


def deepspeed_init(original: Any, trainer: Any, *rest: Any, **kwargs: Any) -> Any:
    """Refuse in `deepspeed_init` what would drop an ADOPT that the Trainer was given.

    Raises:
        ValueError: If another optimizer would train, or the best model could not be loaded at the end.
    """
    config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config
    is_asked, has_block = arguments.asks_for_adopt(trainer), ds_config.is_adopt_block(config)
    if is_asked or has_block:
        _refuse_best_model_from_nvme(trainer, config)
    if not has_block and (arguments.was_given_the_class(trainer) or is_adopt_optimizer(trainer.optimizer)):
        if "optimizer" in config:
            raise ValueError(f"the Trainer was given ADOPT, and {_another_block(config)}")
        if not is_asked:
            raise ValueError(
                f"the Trainer was given an ADOPT in `optimizers`, which it drops under DeepSpeed to build "
                f'optim="{trainer.args.optim.value}": write optim="{NAME}", or give optimizer_cls_and_kwargs'
            )
    return original(trainer, *rest, **kwargs)


def _refuse_best_model_from_nvme(trainer: Any, config: dict[str, Any]) -> None:
    """Raise ValueError if `load_best_model_at_end` needs weights that only the optimizer's disk will have."""
    optimization = config.get("zero_optimization") or {}
    if not trainer.args.load_best_model_at_end or ds_config.offload_device(config) != "nvme":
        return
    gathered = ("stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save")
    missing = ""
    if hasattr(trainer.model, "peft_config"):
        missing = "an adapter has none: remove load_best_model_at_end"
    elif not any(optimization.get(key) for key in gathered):
        missing = f'none is saved: write "{gathered[0]}": true in "zero_optimization" of the DeepSpeed config'
    if missing:
        raise ValueError(
            "load_best_model_at_end=True with the optimizer on NVMe needs the checkpoint's model.safetensors, because "
            f"DeepSpeed does not load weights from such a checkpoint, and {missing}"
        )


def _fill_block(config: dict[str, Any], args: "TrainingArguments") -> list[str]:
    """Complete the block of a DeepSpeed config as an ADOPTW's, in place. Return the lines that contradict `args`."""
    wanted, set_by_user, _ = arguments.resolve(args)
    written = ds_config.block_kwargs(config, auto_is_filled=True)
    betas = dict(zip(("beta1", "beta2"), written.get("betas", ()), strict=False))
    in_block: dict[str, Any] = {**written, **betas}
    mismatches = [
        f"- ds optimizer.params.{'betas' if name in betas else name}={in_block[name]} vs hf {name}={value}"
        for name, value in set_by_user.items()
        if name in in_block and in_block[name] != value
    ]
    config["optimizer"] |= {"type": ADOPTW.__name__, "params": wanted | written}
    return mismatches


def deepspeed_optim_sched(original: Any, trainer: Any, hf_config: Any, *rest: Any, **kwargs: Any) -> Any:
    """Give the Trainer's param groups in `deepspeed_optim_sched` to an ADOPT that DeepSpeed builds.

    Raises:
        ValueError: If LoRA+ is asked for, and the DeepSpeed config has a scheduler.
    """
    by_deepspeed = ds_config.is_adopt_block(hf_config.config)
    if by_deepspeed or arguments.asks_for_adopt(trainer):
        _refuse_scheduler(hf_config.config, trainer.args.optim_args)
    optimizer, scheduler = original(trainer, hf_config, *rest, **kwargs)
    if by_deepspeed:
        numbers = ds_config.block_kwargs(hf_config.config)
        loraplus = arguments.resolve(trainer.args).loraplus
        optimizer.params = _groups(trainer, numbers, loraplus)
        arguments.say(trainer.args, numbers, loraplus)
    return optimizer, scheduler


def _refuse_scheduler(config: dict[str, Any], text: str | None) -> None:
    if "scheduler" in config and "loraplus_lr_ratio" in (text or ""):
        raise ValueError(
            f'optim_args: {text!r} asks for LoRA+, and the "scheduler" block of the DeepSpeed config sets one learning '
            "rate for all param groups: remove that block; lr_scheduler_type and warmup_steps of TrainingArguments "
            "keep the ratio"
        )


def _groups(trainer: Any, numbers: dict[str, Any], loraplus: peft.LoraPlus | None) -> list[dict[str, Any]]:
    """Return the Trainer's param groups for an ADOPT with `numbers`. None of them is empty."""
    if loraplus is not None:
        return peft.loraplus_groups(trainer.model, loraplus, numbers["lr"], numbers["weight_decay"])
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    trainable = [(name, p) for name, p in trainer.model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trainable if name in decayed]},
        {"params": [p for name, p in trainable if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def load_best_model(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Load the weights from their file in `Trainer._load_best_model` if the optimizer is an ADOPT on NVMe."""
    if trainer.is_deepspeed_enabled and ds_config.is_on_nvme(trainer.model_wrapped):
        return load_weights(trainer.model_wrapped, trainer.state.best_model_checkpoint)
    return weights.load_from_checkpoint(original, trainer, *args, **kwargs)


def load_weights(engine: Any, folder: str) -> None:
    """Load the weights that the Trainer has saved in `folder` into the model of a ZeRO 3 engine, one tensor at a time.

    All processes must call this. The float32 copies of the optimizer are unchanged: the weights are not trained
    further.

    Raises:
        FileNotFoundError: If there are no weights in the folder.
    """
    import deepspeed
    from safetensors import safe_open

    files = sorted(glob.glob(os.path.join(glob.escape(folder), "model*.safetensors")))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no model.safetensors: the Trainer saves it under ZeRO 3 if the DeepSpeed config has "
            '"stage3_gather_16bit_weights_on_model_save": true'
        )
    tensors = dict(engine.module.named_parameters(remove_duplicate=False)) | dict(engine.module.named_buffers())
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                with deepspeed.zero.GatheredParameters([tensors[name]], modifier_rank=0), torch.no_grad():
                    if torch.distributed.get_rank() == 0 or not hasattr(tensors[name], "ds_id"):
                        tensors[name].copy_(file.get_tensor(name))
