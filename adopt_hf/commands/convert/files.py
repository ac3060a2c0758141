"""Read a file of torch, and list the files of a folder."""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch


def load(path: Path, weights_only: bool = True) -> Any:
    """Return what a file holds, its tensors mapped into memory and not read.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If the file is cut off, is none of torch's, or holds an object of a class that is not read.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=weights_only)
    except OSError:
        raise
    except ModuleNotFoundError as error:
        raise ValueError(f"{path} holds an object of {error.name}, which is not installed: install it") from error
    except Exception as error:
        if foreign := _foreign_class(error):
            raise ValueError(
                f"{path} holds an object of {foreign}, and a conversion reads tensors, numbers, texts, lists and dicts "
                "only: it is not a state that AdamW or ADOPT has saved"
            ) from error
        raise ValueError(f"{path} cannot be read, it is cut off or no file of torch: {str(error)[:200]}") from error


def _foreign_class(error: Exception) -> str | None:
    """Return the name of the class that torch or pickle did not want to load, or did not find."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        found = found or re.search(r"but got <class '([^']+)'>", str(error))
        return found[1] if found else None
    if isinstance(error, AttributeError):
        found = re.search(r"attribute '([^']+)' on <module '([^']+)'", str(error))
        return f"{found[2]}.{found[1]}" if found else None
    return None


def files_in(folder: Path) -> list[Path]:
    """Return all files of a folder, relative to it, also those in folders that are links.

    Raises:
        OSError: If a folder cannot be read.
        ValueError: If a link leads nowhere or to a folder around it, or something is neither a file nor a folder.
    """
    found = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        here = Path(root)
        around = {path.resolve() for path in (here, *here.parents) if path == folder or folder in path.parents}
        for name in folders:
            if (here / name).resolve() in around:
                raise ValueError(f"{here / name} is a link to a folder that it is in: remove the link")
        for name in names:
            path = here / name
            if not path.is_file():
                what = "a link that leads nowhere" if path.is_symlink() else "neither a file nor a folder"
                raise ValueError(f"{path} is {what}, and a checkpoint has files and folders: remove it")
            found.append(path.relative_to(folder))
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error
