"""Checks and preparations of a recipe before it trains: settings, launch mode, output folder, log lines."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

import adopt_hf
from adopt_hf.backends import cache
from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.integrations.checkpoints import (
    AlreadyFinishedError,
    check_layout,
    check_writable,
    is_finished,
    is_saved,
    to_resume,
)
from adopt_hf.integrations.transformers import optim_args
from adopt_hf.integrations.transformers.names import NAMES
from examples.shared import restarts
from examples.shared.errors import InputError

PICTURE = "loss.png"  # the last file that a run writes


def show_logs(name: str, info: bool = True) -> None:
    """Print the log lines of the recipe `name` and of adopt_hf on stderr: warnings, and INFO lines if `info` is set.

    Only the main process prints INFO lines.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger in (logging.getLogger(name), logging.getLogger("adopt_hf")):
        logger.setLevel(logging.INFO if info and PartialState().is_main_process else logging.WARNING)
        logger.handlers, logger.propagate = [handler], False


# ----- settings -----


def check_training(args: TrainingArguments, lora: bool = False) -> None:
    """Raise an error for what the Trainer would notice only after the data has been prepared.

    Args:
        args: The training arguments. On a CPU `dataloader_pin_memory` becomes False.
        lora: Whether the model will have LoRA's matrices.

    Raises:
        ValueError: If a value is not allowed.
        TypeError: If the schedule does not take the options in `lr_scheduler_kwargs`.
        RuntimeError: If the backend that `optim_args` names cannot run.
    """
    launched, running = int(os.environ.get("WORLD_SIZE", "1")), PartialState().num_processes
    if launched != running:
        # Without --use_cpu accelerate looks for GPUs, finds none, and lets every process train alone.
        raise InputError(f"{launched} processes were launched, but each would train alone; on CPUs pass --use_cpu")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(args, name)}")
    if args.max_steps == 0:
        raise InputError("max_steps must be at least 1, or -1 for num_train_epochs, got 0")
    if isinstance(args.lr_scheduler_kwargs, str):
        raise InputError(f"lr_scheduler_kwargs must be a JSON object, got {args.lr_scheduler_kwargs!r}")
    get_reporting_integration_callbacks(args.report_to)
    settle_deepspeed(args)
    check_optimizer(args, lora)
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # torch warns that there is nothing to pin it for


def check_optimizer(args: TrainingArguments, lora: bool) -> None:
    """Raise the errors of `check_training` if the optimizer or the schedule cannot be made."""
    for name, option in (("learning_rate", "lr"), ("weight_decay", "weight_decay")):
        HYPERPARAMETERS[option].check(name, getattr(args, name))
    loraplus = args.optim in NAMES and "loraplus_lr_ratio" in optim_args.parse(args.optim_args)
    if loraplus and not lora:
        raise InputError(
            "loraplus_lr_ratio in optim_args needs LoRA, and this run trains all weights; remove it, or tune with "
            "use_peft"
        )
    probe = torch.nn.Linear(1, 1, bias=False)
    if not loraplus:  # its groups are made of LoRA's matrices, which only the real model has
        optimizer_cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, probe)
        if issubclass(optimizer_cls, adopt_hf.ADOPT):
            optimizer_cls(probe.parameters(), **kwargs)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD(probe.parameters(), lr=args.learning_rate),
        num_warmup_steps=0,
        num_training_steps=1,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )


def settle_deepspeed(args: TrainingArguments) -> None:
    """Write the numbers of `args` into DeepSpeed's config. Elsewhere its "auto" does not always become these.

    Raises:
        InputError: If the launcher's config has other numbers.
    """
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
                f"{name} is {ours}, but the launcher's DeepSpeed config has {key} = {theirs}; remove it there"
            )
        config[key] = ours


# ----- folders -----


def open_cache(folder: Path, kept: Path | None = None) -> Path:
    """Make `folder`, in which results are kept for later runs, and return it.

    Args:
        folder: The folder.
        kept: A file or a folder inside that will be read if it exists.

    Raises:
        InputError: If `folder` cannot be used, or another user could have changed it or `kept`.
    """
    try:
        cache.create(folder)
    except RuntimeError as error:
        raise InputError(f"cache_dir {folder} cannot be used: {error.__cause__}") from error
    reason = cache.why_not_trusted(folder) if kept is None or not kept.exists() else cache.why_not_all_trusted(kept)
    if reason is not None:
        raise InputError(f"cache_dir {folder} cannot be trusted: {reason}; choose another --cache_dir")
    return folder


def to_go_on_from(args: TrainingArguments, traces: Sequence[str]) -> Path | None:
    """Return the checkpoint to go on from, or None for a new run. All processes call this.

    A run that torchrun has restarted goes on from its last complete checkpoint, whatever `args` say.

    Args:
        args: `resume_from_checkpoint` is a path, or 'true' or 'last' for the newest complete one in `output_dir`. A new
            run needs an `output_dir` that holds no run.
        traces: The patterns of files that a run leaves in its folder.

    Raises:
        InputError: If there is no such checkpoint, or `output_dir` holds another run or cannot be written.
    """
    output_dir = Path(args.output_dir)
    try:
        if restarts.is_restart(output_dir):
            checkpoint = restarts.checkpoint(output_dir, args.resume_from_checkpoint)
        else:
            checkpoint = to_resume(output_dir, args.resume_from_checkpoint, traces)
        check_writable(output_dir)
    except ValueError as error:
        raise InputError(str(error)) from None
    return checkpoint


def check_not_finished(checkpoint: Path, args: TrainingArguments) -> None:
    """Raise AlreadyFinishedError if no step is left after `checkpoint`, and the files of a finished run are written."""
    output_dir = Path(args.output_dir)
    if is_finished(checkpoint, args) and is_saved(output_dir, checkpoint, last=PICTURE):
        raise AlreadyFinishedError(
            f"finished already: the run in {output_dir} has done all its steps ({checkpoint.name}), and its model is "
            "there; ask for more by --max_steps or --num_train_epochs, or choose another --output_dir"
        )


def make_folder(folder: Path, option: str) -> None:
    """Make `folder`, the value of `option`, if it does not exist. Raise InputError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be written: {error.strerror}; choose another") from None


def take_folder(file: Path, text: str, new: bool) -> None:
    """Write `text` into `file` of the output folder, which marks the folder as taken. All processes call this.

    Raises:
        InputError: If the folder cannot be written, or `new` is set and another run has just taken it.
    """
    PartialState().wait_for_everyone()  # every process has looked at the folder before the first one writes
    if PartialState().is_main_process:
        make_folder(file.parent, "output_dir")
        try:
            with open(file, "x" if new else "w", encoding="utf-8") as opened:
                opened.write(text)
        except FileExistsError:
            raise InputError(f"output_dir {file.parent} has just been taken by another run; choose another") from None
        except OSError as error:
            raise InputError(f"output_dir {file.parent} cannot be written: {error.strerror}") from None
    restarts.note(file.parent)


# ----- the launch -----


def check_launch(accelerator: Accelerator, checkpoint: Path | None) -> None:
    """Raise InputError if the launch mode is not the one that was asked for, or not the one of the checkpoint."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and accelerator.distributed_type != DistributedType.FSDP:
        raise InputError("FSDP was asked for, but Accelerate turns it off on CPUs; use ddp.yaml or a DeepSpeed config")
    if checkpoint is not None:
        try:
            check_layout(checkpoint)
        except ValueError as error:
            raise InputError(str(error)) from None


def describe(args: TrainingArguments, checkpoint: Path | None) -> str:
    """Return the sequences of a step, the number of processes, and the checkpoint that the run goes on from."""
    sequences = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    going_on = f"; going on from {checkpoint}" if checkpoint else ""
    return f"{sequences} sequences a step in {args.world_size} process(es){going_on}"
