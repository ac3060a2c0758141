"""Detect incomplete checkpoints.

The Trainer writes a checkpoint file by file into the folder where it will be looked for. Every process writes its own
files. The Trainer resumes from whatever it finds there, with a fresh optimizer if that file is missing. With

    Trainer(..., callbacks=[MarkComplete(save_total_limit=2)])

a checkpoint gets a file `complete.json` after every process has written its part. This file has the name and size of
every file. `missing` and `last_complete` use it to find checkpoints that were interrupted, lost or cut off. Custom
training loops call `mark`.

Processes may be killed at any moment. A machine that loses power may also lose files that were reported as written.
"""

from adopt_hf.integrations.checkpoints.disk import DiskFullError, names_a_full_disk
from adopt_hf.integrations.checkpoints.folders import MARK, checkpoints_in, last_complete, missing, step_of
from adopt_hf.integrations.checkpoints.layouts import check_layout, layout, layout_of
from adopt_hf.integrations.checkpoints.marks import (
    AlreadyFinishedError,
    MarkComplete,
    forget_later,
    mark,
    rotate,
)
from adopt_hf.integrations.checkpoints.resuming import (
    TRAINER_STATE,
    after_interrupt,
    check_optimizer,
    check_writable,
    is_finished,
    is_saved,
    to_resume,
)

__all__ = [
    "MARK",
    "TRAINER_STATE",
    "AlreadyFinishedError",
    "DiskFullError",
    "MarkComplete",
    "after_interrupt",
    "check_layout",
    "check_optimizer",
    "check_writable",
    "checkpoints_in",
    "forget_later",
    "is_finished",
    "is_saved",
    "last_complete",
    "layout",
    "layout_of",
    "mark",
    "missing",
    "names_a_full_disk",
    "rotate",
    "step_of",
    "to_resume",
]
