"""Check that a checkpoint is complete: by its mark, or by what its files show."""

import json
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from adopt_hf.integrations import checkpoints
from adopt_hf.integrations.checkpoints import MARK, TRAINER_STATE

ENDS = (TRAINER_STATE, "random_states_0.pkl")  # what the Trainer and Accelerate write last


def check(checkpoint: Path) -> None:
    """Raise ValueError if `checkpoint` is no folder of a checkpoint, or one that lacks something."""
    if not checkpoint.is_dir():
        raise ValueError(f"there is no folder {checkpoint}: name that of a checkpoint, such as run/checkpoint-500")
    if (checkpoint / MARK).exists():
        lacks = checkpoints.missing(checkpoint)
        if lacks is not None:
            raise ValueError(f"{checkpoint} is not a complete checkpoint: {lacks}")
    elif inside := checkpoints.checkpoints_in(checkpoint):
        raise ValueError(f"{checkpoint} is the folder of a run: name one of its checkpoints, such as {inside[-1]}")
    elif not any((checkpoint / name).is_file() for name in ENDS):
        raise ValueError(f"{checkpoint} is not a complete checkpoint: it has none of {', '.join((MARK, *ENDS))}")
    if (checkpoint / TRAINER_STATE).is_file():
        number_in(checkpoint / TRAINER_STATE, "global_step")
    for path in sorted(checkpoint.iterdir()):
        if path.is_file():
            _check_not_cut_off(path)


def _check_not_cut_off(path: Path) -> None:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):  # reads the header, and compares the file's size with it
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or damaged: {error}") from error
    elif path.suffix in (".pt", ".pth", ".bin"):
        with path.open("rb") as file:
            begin = file.read(2)
        if not begin or (begin == b"PK" and not zipfile.is_zipfile(path)):  # the table of a zip file is at its end
            raise ValueError(f"{path} cannot be read, it is cut off or no file of torch: it ends too early")


def number_in(path: Path, key: str) -> int:
    """Return a number from a JSON file of the checkpoint."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))[key])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is cut off or damaged: it has no {key}") from error
