"""Read a file of torch."""

import zipfile
from pathlib import Path
from typing import Any

import torch


def load(path: Path, weights_only: bool = True) -> Any:
    """Return what a file holds, its tensors mapped into memory and not read.

    Raises:
        ValueError: If the file is cut off, or is none of torch's.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=weights_only)
    except Exception as error:
        raise ValueError(f"{path} cannot be read, it is cut off or no file of torch: {str(error)[:200]}") from error
