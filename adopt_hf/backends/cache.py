"""The cache folder, and the check that its files can be trusted. Libraries in it are run, and verdicts are believed.

A file or folder is trusted if it belongs to the user or to root and no other user can write to it. The same must hold
for every folder above it, because another user could replace a folder there. In a folder with the sticky bit, such as
/tmp, other users can replace only their own files. The group counts as other users. Windows has no such owners and
modes: the rights of the user's profile protect the folder, and nothing is checked.
"""

import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
MOST_LINKS = 40  # symbolic links in a path, as many as Linux follows
LEFT_BEHIND = 3600  # seconds after which an unfinished file is taken for that of a killed process
READ = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def location() -> Path:
    """Return the cache folder: ADOPT_HF_CACHE, or adopt_hf in the user's cache folder. Creates nothing.

    Raises:
        RuntimeError: If there is no home folder.
    """
    named = os.environ.get("ADOPT_HF_CACHE")
    return Path(named).expanduser().absolute() if named else user_cache() / "adopt_hf"


def user_cache() -> Path:
    """Return XDG_CACHE_HOME or ~/.cache. A relative XDG_CACHE_HOME is ignored, as the XDG specification asks.

    Raises:
        RuntimeError: If there is no home folder.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    return Path(named) if os.path.isabs(named) else Path("~/.cache").expanduser().absolute()


def folder() -> Path:
    """Return the cache folder, created if necessary.

    Raises:
        RuntimeError: If it cannot be created or cannot be trusted; the message says why.
    """
    path = location()
    create(path)
    reason = why_not_trusted(path)
    if reason is not None:
        raise RuntimeError(f"the cache folder {path} cannot be trusted: {reason}. Set ADOPT_HF_CACHE to another folder")
    return path


def create(path: Path) -> None:
    """Create a folder, and those above it that are missing, with rights for the user only.

    Raises:
        RuntimeError: If that is not possible.
    """
    try:
        for above in (*reversed(path.parents), path):
            if not above.is_dir():
                with suppress(FileExistsError):  # another process was faster
                    above.mkdir(mode=0o700)
        if not path.is_dir():
            raise NotADirectoryError(f"{path} is not a folder")
    except OSError as error:
        raise RuntimeError(
            f"the cache folder {path} cannot be created: {error}. Set ADOPT_HF_CACHE to another folder"
        ) from error


def why_not_trusted(path: Path) -> str | None:
    """Return why a file or folder, or its path, cannot be trusted, or None if it can."""
    if not hasattr(os, "geteuid"):
        return None
    path = path.absolute()
    walked, links = Path(path.anchor), 0  # without symbolic links
    todo = list(reversed(path.parts[1:]))
    try:
        reason = _why_not(walked, os.lstat(walked))
        while todo and reason is None:
            part = todo.pop()
            if part == "..":
                walked = walked.parent
                continue
            here = walked / part
            found = os.lstat(here)
            reason = _why_not(here, found)
            if not stat.S_ISLNK(found.st_mode):
                walked = here
                continue
            links += 1
            if links > MOST_LINKS:
                return f"{path} has too many symbolic links"
            target = Path(os.readlink(here))
            if target.is_absolute():
                walked = Path(target.anchor)
            todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        return reason or _why_not(walked, os.lstat(walked), sticky_helps=False)
    except OSError as error:
        return str(error)


def _why_not(path: Path, found: os.stat_result, sticky_helps: bool = True) -> str | None:
    """Return why another user could change this file, folder or link, or None."""
    if found.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to user {found.st_uid}, not to user {os.geteuid()} or root"
    if stat.S_ISLNK(found.st_mode):  # a link has no mode
        return None
    if found.st_mode & WRITABLE_BY_OTHERS and not (sticky_helps and found.st_mode & stat.S_ISVTX):
        return f"other users can write to {path} (chmod go-w {path})"
    return None


def why_not_all_trusted(path: Path) -> str | None:
    """Return why a folder or a file in it cannot be trusted, or None if all can."""
    return next(filter(None, map(why_not_trusted, (path, *path.rglob("*")))), None)


def protect(path: Path) -> None:
    """Remove other users' right to write to a file, or to a folder and all files in it."""
    for one in (path, *path.rglob("*")):
        mode = one.lstat().st_mode
        if mode & WRITABLE_BY_OTHERS and not stat.S_ISLNK(mode):
            one.chmod(stat.S_IMODE(mode) & ~WRITABLE_BY_OTHERS)


def open_trusted(path: Path) -> int:
    """Return a descriptor for reading a file in a trusted folder. It reads the file that was checked.

    Raises:
        OSError: If there is no such file.
        RuntimeError: If it is not a regular file, or cannot be trusted.
    """
    descriptor = os.open(path, READ)
    try:
        found = os.fstat(descriptor)
        reason = None if stat.S_ISREG(found.st_mode) else f"{path} is not a file"
        if reason is None and hasattr(os, "geteuid"):
            reason = _why_not(path, found, sticky_helps=False)
        if reason is not None:
            raise RuntimeError(f"a file of the cache cannot be trusted: {reason}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def write(path: Path, data: bytes, mode: int) -> None:
    """Write a file atomically, also if several processes write it at once.

    Args:
        path: The file.
        data: Its content.
        mode: Its mode, from which other users' right to write is removed.

    Raises:
        OSError: If it cannot be written.
    """
    descriptor, unfinished = tempfile.mkstemp(prefix=path.name, suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(unfinished).chmod(mode & ~WRITABLE_BY_OTHERS)
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    for other in path.parent.glob(f"{path.name.split('-')[0]}-*.tmp"):
        with suppress(OSError):
            if other.stat().st_mtime < time.time() - LEFT_BEHIND:
                other.unlink()
