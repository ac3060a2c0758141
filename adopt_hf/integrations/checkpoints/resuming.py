"""Which checkpoint is complete: a list of its files, written last, tells a finished one from what a killed run left.

The Trainer writes a checkpoint file by file into the folder where it will be looked for, every process its own files,
and resumes from whatever it finds there, with a fresh optimizer if that file is missing. With

    Trainer(..., callbacks=[MarkComplete(save_total_limit=2)])

a checkpoint gets a file `complete.json` once every process has written its part: the name and size of every file. What
was interrupted, lost or cut off is known by it: `missing`, `last_complete`. Loops of one's own call `mark`.

Processes may be killed at any moment; a machine that loses power may also lose files that were said to be written.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.state import AcceleratorState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adopt_hf.integrations import guard
from adopt_hf.optimizer import is_adopt_optimizer
from adopt_hf.state.loading import WEIGHTS_ONLY

logger = logging.getLogger("adopt_hf")

MARK = "complete.json"
TRAINER_STATE = "trainer_state.json"
# What a full disk makes torch, its C++ streams and safetensors say.
SAYS_FULL = ("unexpected pos", "iostream error", "file write failed", "No space left on device", "Disk quota exceeded")


class AlreadyFinishedError(RuntimeError):
    """A run is resumed that has no step left to do."""


class MarkComplete(TrainerCallback):
    """Marks the Trainer's checkpoints as complete, and removes old ones.

    A finished run that is resumed raises AlreadyFinishedError, with its weights loaded. The Trainer would do one step
    more, which changes the model.

    Args:
        save_total_limit: complete checkpoints that are kept, None for all. Give it here and not to TrainingArguments:
            the Trainer makes room before the new checkpoint is complete, and a run killed then has none.
    """

    def __init__(self, save_total_limit: int | None = None):
        self.save_total_limit = save_total_limit

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step >= state.max_steps > 0:
            raise AlreadyFinishedError(
                f"finished already: the run in {args.output_dir} has done {state.global_step} of {state.max_steps} "
                "steps"
            )
        if args.should_save:
            forget_later(Path(str(args.output_dir)), state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.save_only_model:  # such a one is no checkpoint to resume from
            return
        PartialState().wait_for_everyone()
        if args.should_save:
            output_dir = Path(str(args.output_dir))
            mark(output_dir / f"checkpoint-{state.global_step}", state.global_step, kwargs.get("optimizer"))
            best = state.best_model_checkpoint
            rotate(output_dir, self.save_total_limit, keep=[Path(best)] if best else [])


def mark(checkpoint: Path, step: int, optimizer: Any = None) -> None:
    """Declare that all that is in the folder `checkpoint` now is a complete checkpoint, taken after `step` steps.

    For one process, when all have written their parts. If `optimizer` is given, `check_optimizer` knows its class.
    """
    (checkpoint / MARK).unlink(missing_ok=True)
    files = {
        p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in sorted(checkpoint.rglob("*")) if p.is_file()
    }
    unfinished = checkpoint / f"{MARK}.unfinished"
    files.pop(unfinished.name, None)  # of a run that was killed right here
    written: dict[str, Any] = {"step": step, "layout": layout(), "files": files}
    if optimizer is not None:
        inner = guard.innermost(optimizer)
        written["optimizer"] = {"class": type(inner).__name__, "is_adopt": is_adopt_optimizer(inner)}
    unfinished.write_text(json.dumps(written, indent=1), encoding="utf-8")
    os.replace(unfinished, checkpoint / MARK)


def missing(checkpoint: Path) -> str | None:
    """What `checkpoint` lacks, in a line that names the file; None if it is complete."""
    try:
        written = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        step, files = int(written["step"]), dict(written["files"])
    except FileNotFoundError:
        return f"no {MARK}, saving it was not finished"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MARK} cannot be read"
    if step_of(checkpoint) not in (None, step):
        return f"{MARK} is that of step {step}"
    for name, size in files.items():
        try:
            found = (checkpoint / name).stat().st_size
        except OSError:
            return f"no {name}"
        if found != size:
            return f"{name} has {found} of {size} bytes"
    return None


def last_complete(output_dir: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest complete checkpoint in `output_dir`, and the newer ones with what each lacks, newest first."""
    skipped: list[tuple[Path, str]] = []
    for checkpoint in reversed(checkpoints_in(output_dir)):
        reason = missing(checkpoint)
        if reason is None:
            return checkpoint, skipped
        skipped.append((checkpoint, reason))
    return None, skipped


def to_resume(output_dir: Path, asked: str | None, traces: Collection[str] = ("checkpoint-*",)) -> Path | None:
    """The checkpoint that a run goes on from; None to start anew.

    Args:
        output_dir: the run's folder; to start anew, it must not hold a run.
        asked: `resume_from_checkpoint`: a path, or "true" or "last" for the newest complete one in `output_dir`;
            None or "false": start anew.
        traces: patterns of what a run leaves in its folder.

    Raises:
        ValueError: the folder holds another run, or there is no such complete checkpoint; says what is there.
    """
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
                f"no complete checkpoint to resume from in output_dir {output_dir} ({why}); start anew, in another "
                "--output_dir or after removing this one"
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
        raise ValueError(f"resume_from_checkpoint {asked} is not a complete checkpoint: {lacks}")
    return checkpoint


def check_writable(output_dir: Path) -> None:
    """Raise ValueError if `output_dir`, which need not exist, cannot be written to. It is not made."""
    folder = output_dir.absolute()
    try:
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {output_dir} cannot be written: {error.strerror}") from None


def after_interrupt(argv: Sequence[str], output_dir: Path) -> str:
    """Return the line for a user who has interrupted a run: the command that goes on with it.

    Args:
        argv: `sys.argv` of a script that takes `--output_dir` and `--resume_from_checkpoint last`.
        output_dir: the run's folder.
    """
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


def check_layout(checkpoint: Path) -> None:
    """Raise ValueError if `checkpoint` was written in a launch mode whose files this process's cannot read."""
    theirs: str | None = layout_of(checkpoint)
    ours = layout()
    if theirs != ours:
        raise ValueError(
            f"checkpoint {checkpoint} was written with another launcher config: its layout is {theirs!r}, this run's "
            f"{ours!r}"
        )


def check_optimizer(checkpoint: Path, optimizer: Any) -> None:
    """Check that the optimizer of `checkpoint` and `optimizer` are both ADOPT, or both not.

    Args:
        checkpoint: A complete checkpoint. One that was marked without its optimizer passes.
        optimizer: The optimizer that is to go on, or its class.

    Raises:
        ValueError: If only one of the two is ADOPT.
    """
    saved = json.loads((checkpoint / MARK).read_text(encoding="utf-8")).get("optimizer")
    if saved is None or saved["is_adopt"] == is_adopt_optimizer(optimizer):
        return
    name = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
    if saved["is_adopt"]:
        raise ValueError(guard.refusal(name, f"the optimizer's state in {checkpoint}"))
    raise ValueError(
        f"the optimizer's state in {checkpoint} is that of {saved['class']}, and the optimizer is {name}: go on with "
        f"{saved['class']}, or with {WEIGHTS_ONLY}"
    )


def is_finished(checkpoint: Path, args: TrainingArguments) -> bool:
    """Return whether no step is left to do after `checkpoint`, of the steps or epochs that `args` ask for."""
    state: Any = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
    if args.max_steps > 0:
        return bool(state.global_step >= args.max_steps)
    return bool((state.epoch or 0.0) >= args.num_train_epochs)


def is_saved(output_dir: Path, checkpoint: Path, last: str) -> bool:
    """Return whether a run has written its end into `output_dir` after `checkpoint`, its last one.

    Args:
        output_dir: the run's folder, in which there is a trainer_state.json first and the model after it.
        checkpoint: the last checkpoint.
        last: the name of the file that is written last of all.
    """
    state, end = output_dir / TRAINER_STATE, output_dir / last
    if not state.is_file() or not end.is_file() or end.stat().st_mtime_ns < state.stat().st_mtime_ns:
        return False
    there, here = (TrainerState.load_from_json(str(path / TRAINER_STATE)) for path in (output_dir, checkpoint))
    return bool(there.global_step == here.global_step)


def checkpoints_in(output_dir: Path) -> list[Path]:
    """The folders checkpoint-<step> in `output_dir`, complete or not, oldest first."""
    found = [(step, p) for p in output_dir.glob("checkpoint-*") if (step := step_of(p)) is not None and p.is_dir()]
    return [p for _, p in sorted(found)]


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of the folder, None if it has another name."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else None


def forget_later(output_dir: Path, step: int) -> None:
    """Take the marks from the checkpoints after `step`, for a run that goes on from there.

    It will write them anew, and half of the new files beside half of the old ones would pass for a complete checkpoint.
    """
    for checkpoint in checkpoints_in(output_dir):
        later = step_of(checkpoint)
        if later is not None and later > step and (checkpoint / MARK).exists():
            logger.info("%s no longer counts as complete: the run goes on from step %d", checkpoint, step)
            (checkpoint / MARK).unlink()


def rotate(output_dir: Path, limit: int | None, keep: Collection[Path] = ()) -> None:
    """Remove what is older than the newest `limit` complete checkpoints, but for those in `keep`."""
    if limit is None or limit < 1:
        return
    complete = [p for p in checkpoints_in(output_dir) if missing(p) is None]
    if len(complete) <= limit:
        return
    kept = {p.resolve() for p in keep}
    for checkpoint in checkpoints_in(output_dir):
        if checkpoint == complete[-limit]:
            return
        if checkpoint.resolve() not in kept:
            (checkpoint / MARK).unlink(missing_ok=True)  # first: what is half removed is not complete
            shutil.rmtree(checkpoint)


# ----- a full disk -----


class DiskFullError(RuntimeError):
    """A checkpoint or a model could not be written."""


@contextlib.contextmanager
def names_a_full_disk(output_dir: Path) -> Iterator[None]:
    """Raise DiskFullError instead of what torch and safetensors raise in the block if the disk of `output_dir` is full.

    Theirs ("unexpected pos 576 vs 534") names neither the disk nor the file.
    """
    try:
        yield
    except Exception as error:
        if not _says_full(error):
            raise
        free = shutil.disk_usage(output_dir if output_dir.is_dir() else Path.cwd()).free
        checkpoint, _ = last_complete(output_dir)
        rest = (
            "there is no complete checkpoint" if checkpoint is None else f"the last complete checkpoint is {checkpoint}"
        )
        raise DiskFullError(
            f"writing into {output_dir} failed, as it does on a full disk ({free / 2**20:,.0f} MiB are free now; the "
            f"error was: {' '.join(str(error).split())}): free some space; {rest}"
        ) from error


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in SAYS_FULL)


# ----- which launch mode reads it -----


def layout() -> str:
    """How this run's launch mode lays out a checkpoint; one is read again by a run with the same layout alone.

    The Trainer would load what it knows of another one, and leave out the rest.
    """
    state = AcceleratorState()
    kind = state.distributed_type.value
    if kind == "DEEPSPEED":
        return f"DeepSpeed ZeRO {state.deepspeed_plugin.zero_stage}"
    if kind == "FSDP":
        return f"FSDP{state.fsdp_plugin.fsdp_version} {state.fsdp_plugin.state_dict_type.name}"
    return "whole"  # one process, or DDP


def layout_of(checkpoint: Path) -> str:
    """The layout in which a complete checkpoint was written."""
    return str(json.loads((checkpoint / MARK).read_text(encoding="utf-8"))["layout"])
