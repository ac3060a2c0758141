"""The folders of a run's checkpoints, and whether each is complete."""

import json
import os
import re
from pathlib import Path

MARK = "complete.json"
Folder = str | os.PathLike[str]  # as callers have it: args.output_dir is text


def missing(checkpoint: Folder) -> str | None:
    """Return what `checkpoint` lacks, in a line that names the file, or None if it is complete."""
    checkpoint = Path(checkpoint)
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


def last_complete(output_dir: Folder) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest complete checkpoint in `output_dir`, and the newer ones with what each lacks, newest first."""
    skipped: list[tuple[Path, str]] = []
    for checkpoint in reversed(checkpoints_in(output_dir)):
        reason = missing(checkpoint)
        if reason is None:
            return checkpoint, skipped
        skipped.append((checkpoint, reason))
    return None, skipped


def set_aside(output_dir: Path, number: int) -> str:
    """Give a run's folder without a complete checkpoint another name, and return a sentence about it.

    Nothing is deleted.

    Args:
        output_dir: The run's folder.
        number: The number of the restart. The new name ends with it, or with the next one that is free.
    """
    _, skipped = last_complete(output_dir)
    while (aside := output_dir.with_name(f"{output_dir.name}-start{number}")).exists():
        number += 1
    output_dir.rename(aside)
    why = "; ".join(f"{folder.name}: {reason}" for folder, reason in skipped) or "it has no checkpoint"
    return f"{output_dir} has no complete checkpoint ({why}); it is now {aside}, and the run begins"


def checkpoints_in(output_dir: Folder) -> list[Path]:
    """Return the folders checkpoint-<step> in `output_dir`, complete or not, oldest first."""
    output_dir = Path(output_dir)
    found = [(step, p) for p in output_dir.glob("checkpoint-*") if (step := step_of(p)) is not None and p.is_dir()]
    return [p for _, p in sorted(found)]


def step_of(checkpoint: Folder) -> int | None:
    """Return the step in the name of the folder, or None if it has another name."""
    checkpoint = Path(checkpoint)
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else None
