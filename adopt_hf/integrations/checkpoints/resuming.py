"""The checkpoint that a run continues from, whether a run has ended, and the command after an interrupt."""

import json
import logging
import os
import shlex
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments

from adopt_hf.identity import is_adopt_optimizer
from adopt_hf.integrations import guard
from adopt_hf.integrations.checkpoints.folders import MARK, Folder, last_complete, missing
from adopt_hf.state.saved_groups import CONVERT, WEIGHTS_ONLY

logger = logging.getLogger("adopt_hf")


TRAINER_STATE = "trainer_state.json"


def to_resume(output_dir: Folder, asked: str | None, traces: Collection[str] = ("checkpoint-*",)) -> Path | None:
    """Return the checkpoint that a run continues from, or None to start a new run.

    Args:
        output_dir: The run's folder. For a new run, it must not hold another one.
        asked: `resume_from_checkpoint`: a path, or "true" or "last" for the newest complete checkpoint in `output_dir`.
            None or "false" starts a new run.
        traces: Patterns of the files that a run leaves in its folder.

    Raises:
        ValueError: If the folder holds another run, or there is no such complete checkpoint. The message says what is
            there.
    """
    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir {output_dir} is a file; choose another --output_dir")
    found = sorted(p.name for pattern in traces for p in output_dir.glob(pattern))
    if asked is None or asked.lower() == "false":
        if found:
            raise ValueError(
                f"output_dir {output_dir} holds another run ({found[0]}); choose another --output_dir, "
                "or go on with it by --resume_from_checkpoint last"
            )
        return None
    if asked.lower() in ("true", "last"):
        checkpoint, skipped = last_complete(output_dir)
        if checkpoint is None:
            why = "; ".join(f"{p.name}: {reason}" for p, reason in skipped) or "there are none"
            raise ValueError(
                f"no complete checkpoint to resume from in output_dir {output_dir} ({why}); start a new run in "
                "another --output_dir, or remove this one first"
            )
        for incomplete, reason in skipped:
            logger.warning("skipping %s, which is incomplete: %s", incomplete, reason)
        return checkpoint
    checkpoint = Path(asked)
    if not checkpoint.is_dir():
        raise ValueError(
            f"resume_from_checkpoint {asked} does not exist; pass the folder of a checkpoint, or 'last' for the "
            f"newest in {output_dir}"
        )
    if found and checkpoint.resolve().parent != output_dir.resolve():
        raise ValueError(
            f"output_dir {output_dir} holds another run ({found[0]}) than {asked} is of; choose another "
            "--output_dir, or go on with the one in it by --resume_from_checkpoint last"
        )
    lacks = missing(checkpoint)
    if lacks is not None:
        raise ValueError(
            f"resume_from_checkpoint {asked} is not a complete checkpoint: {lacks}; pass 'last' for the newest "
            f"complete one in {output_dir}"
        )
    return checkpoint


def check_writable(output_dir: Folder) -> None:
    """Raise ValueError if `output_dir`, which need not exist, cannot be written to. The folder is not created."""
    output_dir = Path(output_dir)
    folder = output_dir.absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"output_dir {output_dir} cannot be written: {error.strerror}; choose another --output_dir"
        ) from None


def after_interrupt(argv: Sequence[str], output_dir: Folder) -> str:
    """Return the line for a user who has interrupted a run, with the command that continues it.

    Args:
        argv: `sys.argv` of a script that takes `--output_dir` and `--resume_from_checkpoint last`.
        output_dir: The run's folder.
    """
    output_dir = Path(output_dir)
    script, *options = argv
    checkpoint, _ = last_complete(output_dir)
    if checkpoint is None:
        where = f", in another --output_dir or after removing {output_dir}" if output_dir.exists() else ""
        return f"{Path(script).name}: stopped before a first checkpoint was complete; start again{where}"
    command = [script]
    while options:
        option = options.pop(0)
        if option == "--resume_from_checkpoint":
            del options[:1]
        elif not option.startswith("--resume_from_checkpoint="):
            command.append(option)
    if not any(option.split("=")[0] == "--output_dir" for option in command):
        command += ["--output_dir", str(output_dir)]
    command += ["--resume_from_checkpoint", "last"]
    launcher = "YOUR LAUNCHER" if "WORLD_SIZE" in os.environ else "python"
    return f"{Path(script).name}: stopped; go on from {checkpoint.name} with: {launcher} {shlex.join(command)}"


def check_optimizer(checkpoint: Folder, optimizer: Any) -> None:
    """Check that the optimizer of `checkpoint` and `optimizer` are both ADOPT, or that neither is.

    Args:
        checkpoint: A complete checkpoint. One that was marked without its optimizer passes.
        optimizer: The optimizer that is to continue, or its class.

    Raises:
        ValueError: If only one of the two is ADOPT.
    """
    checkpoint = Path(checkpoint)
    saved = json.loads((checkpoint / MARK).read_text(encoding="utf-8")).get("optimizer")
    if saved is None or saved["is_adopt"] == is_adopt_optimizer(optimizer):
        return
    name = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
    if saved["is_adopt"]:
        raise ValueError(guard.refusal(name, f"the optimizer's state in {checkpoint}"))
    raise ValueError(
        f"the optimizer's state in {checkpoint} is that of {saved['class']}, and the optimizer is {name}: go on with "
        f"{saved['class']}, {CONVERT.format('adopt')} if that is AdamW, or go on with {WEIGHTS_ONLY}"
    )


def is_finished(checkpoint: Folder, args: TrainingArguments) -> bool:
    """Return whether `checkpoint` has no step left to do, of the steps or epochs that `args` ask for."""
    checkpoint = Path(checkpoint)
    state: Any = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
    if args.max_steps > 0:
        return bool(state.global_step >= args.max_steps)
    return bool((state.epoch or 0.0) >= args.num_train_epochs)


def is_saved(output_dir: Folder, checkpoint: Folder, last: str) -> bool:
    """Return whether a run has written its end into `output_dir` after `checkpoint`, its last one.

    Args:
        output_dir: The run's folder. The run writes trainer_state.json there first, and the model after it.
        checkpoint: The last checkpoint.
        last: The name of the file that the run writes last of all.
    """
    output_dir, checkpoint = Path(output_dir), Path(checkpoint)
    state, end = output_dir / TRAINER_STATE, output_dir / last
    if not state.is_file() or not end.is_file() or end.stat().st_mtime_ns < state.stat().st_mtime_ns:
        return False
    there, here = (TrainerState.load_from_json(str(path / TRAINER_STATE)) for path in (output_dir, checkpoint))
    return bool(there.global_step == here.global_step)
