"""An error that names a full disk, instead of the errors of torch and safetensors."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from adopt_hf.integrations.checkpoints.folders import Folder, last_complete

# Texts in the errors of torch, its C++ streams and safetensors on a full disk.
SAYS_FULL = ("unexpected pos", "iostream error", "file write failed", "No space left on device", "Disk quota exceeded")


class DiskFullError(RuntimeError):
    """A checkpoint or a model could not be written."""


@contextlib.contextmanager
def names_a_full_disk(output_dir: Folder) -> Iterator[None]:
    """Raise DiskFullError instead of what torch and safetensors raise in the block if the disk of `output_dir` is full.

    Their errors ("unexpected pos 576 vs 534") name neither the disk nor the file.
    """
    output_dir = Path(output_dir)
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
