"""What a recipe does before it trains: shows logs, and checks how it was launched."""

import logging
import os
from pathlib import Path

from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from adopt_hf.integrations.checkpoints import check_layout
from examples.shared.cli import InputError


def show_logs(args: TrainingArguments) -> None:
    """Send the warnings of this example and of adopt_hf to stderr; with `--log_level info` also the INFO lines."""
    shown = logging.INFO if args.log_level in ("info", "detail", "debug") else logging.WARNING
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("gpt2_pretraining", "adopt_hf"):
        logger = logging.getLogger(name)
        logger.setLevel(shown if PartialState().is_main_process else logging.WARNING)
        logger.handlers, logger.propagate = [handler], False


def settle_deepspeed(args: TrainingArguments) -> None:
    """Let DeepSpeed's config say what `args` says. What its "auto" becomes elsewhere is not always that."""
    plugin = args.deepspeed_plugin
    if plugin is None:
        return
    config = plugin.deepspeed_config
    for key, name in (
        ("train_micro_batch_size_per_gpu", "per_device_train_batch_size"),
        ("gradient_accumulation_steps", "gradient_accumulation_steps"),
        ("gradient_clipping", "max_grad_norm"),
    ):
        theirs, ours = config.get(key, getattr(plugin, key, "auto")), getattr(args, name)
        if theirs not in ("auto", ours):
            raise InputError(
                f"{name} is {ours}, but the launcher's DeepSpeed config has {key} = {theirs}; drop it there"
            )
        config[key] = ours


def check_launch(accelerator: Accelerator, checkpoint: Path | None) -> None:
    """Raise InputError if this is another launch mode than was asked for, or than the checkpoint's to go on from."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and accelerator.distributed_type != DistributedType.FSDP:
        raise InputError(
            "FSDP was asked for, but accelerate leaves it off on CPUs; take ddp.yaml or a DeepSpeed config"
        )
    if checkpoint is not None:
        try:
            check_layout(checkpoint)
        except ValueError as error:
            raise InputError(str(error)) from None
