"""A folder that is complete or does not exist: written next to its place under another name, and renamed at the end."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
CHUNK = 2**24  # bytes that are copied between two moves of the progress bar


@contextlib.contextmanager
def written(target: Path, replaces: bool) -> Iterator[Path]:
    """Yield a new folder that becomes `target` at the end of the block, with all its files on the disk.

    If the block raises, or the process is killed, `target` is as it was. What a killed process has left is removed by
    the next call for the same target.

    Args:
        target: The folder; its parents are made.
        replaces: Whether `target` exists, and is to be replaced in one step.

    Raises:
        ValueError: If another process is writing this target, or this system cannot replace a folder in one step.
    """
    if replaces:
        _check_exchange()
    made = [path for path in target.parents if not path.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    clean(target)
    unfinished = _unfinished(target)
    unfinished.mkdir()
    with _locked(unfinished), contextlib.ExitStack() as at_the_end:
        try:
            yield unfinished
            _sync(unfinished)
            at_the_end.enter_context(_without_interrupts())
            if replaces:
                _exchange(unfinished, target)  # `unfinished` is the old folder now
            else:
                os.rename(unfinished, target)
            _sync_folder(target.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            for path in made:
                if not any(path.iterdir()):  # an error leaves no folder behind
                    path.rmdir()


def clean(target: Path) -> None:
    """Remove what a killed process has left next to `target`.

    Raises:
        ValueError: If another process is writing this target.
    """
    unfinished = _unfinished(target)
    if unfinished.is_dir():
        with _locked(unfinished):
            shutil.rmtree(unfinished)


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.unfinished")


def copy(source: Path, target: Path, advance: Callable[[int], object]) -> None:
    """Copy a file with its times, and tell `advance` of each piece of so many bytes.

    A hard link would cost no space, but a later run that writes into one folder would change the other one's file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reads, target.open("wb") as writes:
        while piece := reads.read(CHUNK):
            writes.write(piece)
            advance(len(piece))
    shutil.copystat(source, target)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which ends with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ValueError(f"another process is writing {folder}: wait for it to end") from None
    finally:
        os.close(handle)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in the block: an interrupt says that nothing has been changed, which is no longer so."""
    if threading.current_thread() is not threading.main_thread():  # others cannot set a handler, and get no interrupt
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk."""
    for path in folder.rglob("*"):
        _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check_exchange() -> None:
    if not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "renameat2"):
        raise ValueError(
            "--in-place needs Linux, which can exchange two folders in one step: write --output DIR instead"
        )


def _exchange(one: Path, other: Path) -> None:
    """Let two folders of a file system exchange their names, in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        code = ctypes.get_errno()
        if code in (errno.EINVAL, errno.ENOSYS):
            raise ValueError(
                f"--in-place is not possible on the file system of {other}, which cannot exchange two folders in one "
                "step: write --output DIR instead"
            )
        raise OSError(code, os.strerror(code), str(other))
