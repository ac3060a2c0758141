"""Mark checkpoints as complete, by hand or by a callback of the Trainer, and remove old ones."""

import json
import logging
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.integrations.checkpoints.folders import MARK, Folder, checkpoints_in, missing, step_of
from adopt_hf.integrations.checkpoints.layouts import layout

logger = logging.getLogger("adopt_hf")


class AlreadyFinishedError(RuntimeError):
    """A run was resumed that has no step left to do."""


class MarkComplete(TrainerCallback):
    """A callback that marks the Trainer's checkpoints as complete, and removes old ones.

    A finished run that is resumed raises AlreadyFinishedError, with its weights loaded. The Trainer would do one step
    more, which changes the model.

    Args:
        save_total_limit: The number of complete checkpoints to keep, or None for all. Give it here and not to
            TrainingArguments. The Trainer removes old checkpoints before the new one is complete, and a run that is
            killed then has none.
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
        if args.save_only_model:  # the Trainer cannot resume from it
            return
        PartialState().wait_for_everyone()
        if args.should_save:
            output_dir = Path(str(args.output_dir))
            mark(output_dir / f"checkpoint-{state.global_step}", state.global_step, kwargs.get("optimizer"))
            best = state.best_model_checkpoint
            rotate(output_dir, self.save_total_limit, keep=[Path(best)] if best else [])


def mark(checkpoint: Folder, step: int, optimizer: Any = None) -> None:
    """Declare that the files in the folder `checkpoint` now are a complete checkpoint, taken after `step` steps.

    One process calls this, after all processes have written their parts. If `optimizer` is given, `check_optimizer`
    knows its class.
    """
    written: dict[str, Any] = {"layout": layout()}
    if optimizer is not None:
        inner = innermost(optimizer)
        written["optimizer"] = {"class": type(inner).__name__, "is_adopt": is_adopt_optimizer(inner)}
    write_mark(checkpoint, step, **written)


def write_mark(checkpoint: Folder, step: int, **more: Any) -> None:
    """Write the mark of a checkpoint that is complete, with the layout and the optimizer that `more` names."""
    checkpoint = Path(checkpoint)
    (checkpoint / MARK).unlink(missing_ok=True)
    files = {
        p.relative_to(checkpoint).as_posix(): p.stat().st_size for p in sorted(checkpoint.rglob("*")) if p.is_file()
    }
    unfinished = checkpoint / f"{MARK}.unfinished"
    files.pop(unfinished.name, None)  # of a run that was killed at this point
    written = {"step": step, "files": files, **more}
    unfinished.write_text(json.dumps(written, indent=1), encoding="utf-8")
    os.replace(unfinished, checkpoint / MARK)


def forget_later(output_dir: Folder, step: int) -> None:
    """Remove the marks of the checkpoints after `step`, for a run that continues from there.

    The run will write these checkpoints again. Half of the new files next to half of the old ones would pass as
    complete.
    """
    for checkpoint in checkpoints_in(output_dir):
        later = step_of(checkpoint)
        if later is not None and later > step and (checkpoint / MARK).exists():
            logger.info("%s no longer counts as complete: the run goes on from step %d", checkpoint, step)
            (checkpoint / MARK).unlink()


def rotate(output_dir: Folder, limit: int | None, keep: Collection[Folder] = ()) -> None:
    """Remove the checkpoints that are older than the newest `limit` complete ones, except for those in `keep`."""
    if limit is None or limit < 1:
        return
    complete = [p for p in checkpoints_in(output_dir) if missing(p) is None]
    if len(complete) <= limit:
        return
    kept = {Path(p).resolve() for p in keep}
    for checkpoint in checkpoints_in(output_dir):
        if checkpoint == complete[-limit]:
            return
        if checkpoint.resolve() not in kept:
            (checkpoint / MARK).unlink(missing_ok=True)  # first, so that a half removed checkpoint is not complete
            shutil.rmtree(checkpoint)
