"""The output folder of a comparison: whose it is, where the runs lie, and files that are written in one piece."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adopt_hf.commands.compare.plan import InputError, Plan, Run, why_another

PLAN, DONE, LOG, LOCK = "compare.json", "done.json", "log.txt", "lock"
ASKED, STATE, OUTPUT = "asked.json", "trainer_state.json", "output"


def write(path: Path, text: str) -> None:
    """Write a file that a kill leaves as it was before, or as it is to be."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, which knows no NaN."""
    write(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return what a file holds, or None if there is no such file or it is cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class Folder:
    """The output folder.

    Args:
        path: The folder. It may not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path.absolute()
        self.is_new = False  # whether this process has begun the comparison in it
        self.was_there = self.path.is_dir()

    def of(self, run: Run) -> Path:
        """Return the folder of a run."""
        return self.path / "runs" / run.name

    @contextlib.contextmanager
    def taken(self, plan: Plan) -> Iterator[None]:
        """Take the folder for a plan, and keep other processes out of it.

        Raises:
            InputError: If it belongs to another comparison, holds other files, or cannot be written.
        """
        now = plan.identity()
        before = self.check(now)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / LOCK, "a")  # noqa: SIM115  held until the end
        except OSError as error:
            raise InputError(f"--output {self.path} cannot be written: {error.strerror}") from None
        with lock:
            if not _locks(lock.fileno()):
                raise InputError(f"--output {self.path} is in use by another adopt-hf compare: wait for its end")
            self.is_new = before is None
            if before != now:
                write_json(self.path / PLAN, now)
            yield

    def check(self, now: dict[str, Any]) -> dict[str, Any] | None:
        """Return the identity of the comparison in the folder, None if there is none. Change nothing.

        Raises:
            InputError: If it belongs to another comparison, or holds other files.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output {self.path} is a file: write a folder")
        if not (self.path / PLAN).is_file():
            others = [entry.name for entry in self.path.iterdir() if entry.name != LOCK] if self.path.is_dir() else []
            if others:
                raise InputError(
                    f"--output {self.path} holds {others[0]!r} and no comparison: write another folder, or an empty one"
                )
            return None
        before = read_json(self.path / PLAN)
        if not isinstance(before, dict):
            raise InputError(f"{self.path / PLAN} cannot be read: write another --output")
        reason = why_another(before, now)
        if reason is not None:
            raise InputError(f"--output {self.path} holds another comparison: {reason}; write another --output")
        return before

    def give_up(self) -> None:
        """Remove what this process has begun, if it has begun the comparison and no run is finished."""
        if self.is_new and not any(self.path.glob(f"runs/*/{DONE}")):
            shutil.rmtree(self.path / "runs", ignore_errors=True)
            for name in (PLAN, LOCK):
                (self.path / name).unlink(missing_ok=True)
            if not self.was_there:
                with contextlib.suppress(OSError):  # not empty
                    self.path.rmdir()


def _locks(file: int) -> bool:
    """Return whether this process holds the lock now. It is released when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
