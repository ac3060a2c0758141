"""Check that a checkpoint is complete: by its mark, or by what its files show."""

import fnmatch
import json
import pickle
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from adopt_hf.commands.convert.files import files_in
from adopt_hf.integrations import checkpoints
from adopt_hf.integrations.checkpoints import MARK, TRAINER_STATE

ENDS = (TRAINER_STATE, "random_states_0.pkl")  # what the Trainer and Accelerate write last
OF_TORCH = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
OF_WEIGHTS = (".distcp", ".gguf", ".h5", ".msgpack", ".npz", ".safetensors", *OF_TORCH)
NO_WEIGHTS = (  # names of files and folders that end in the same way
    *("optimizer*", "scheduler*", "scaler*", "sampler*", "dl_state_dict*", "rng_state*", "random_states*"),
    *("training_args.bin", "custom_checkpoint_*", "*optim_states.pt", "exp_avg*.pt", "step.pt"),
)
RECORD = "converted.json"  # what a conversion has found, for one that goes back
DCP_TABLE = ".metadata"  # of a distributed checkpoint of torch


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
    there = files_in(checkpoint)
    for path in there:
        _check_not_cut_off(checkpoint / path, is_inside=len(path.parts) > 1)
    if not (checkpoint / MARK).exists() and not any(map(_may_be_weights, there)):
        raise ValueError(
            f"{checkpoint} is not a complete checkpoint: it has no weights, such as model.safetensors, "
            "adapter_model.safetensors or pytorch_model.bin"
        )


def number_in(path: Path, key: str) -> int:
    """Return a number from a JSON file of the checkpoint."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))[key])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is cut off or damaged: it has no {key}") from error


def _may_be_weights(path: Path) -> bool:
    """Return whether a file of a checkpoint, known by its path in it, may hold weights."""
    is_other = any(fnmatch.fnmatch(part, pattern) for part in path.parts for pattern in NO_WEIGHTS)
    return path.suffix in OF_WEIGHTS and not is_other


def _check_not_cut_off(path: Path, is_inside: bool) -> None:
    """Raise ValueError if a file ends too early, as far as its kind shows it.

    Args:
        path: The file.
        is_inside: Whether it is in a folder of the checkpoint, where JSON is nothing that a resume reads.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):  # reads the header, and compares the file's size with it
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is cut off or damaged: {error}") from error
    elif path.suffix in OF_TORCH:
        with path.open("rb") as file:
            begin = file.read(2)
        if b"PK".startswith(begin) and not zipfile.is_zipfile(path):  # the table of a zip file is at its end
            raise ValueError(f"{path} cannot be read, it is cut off or no file of torch: it ends too early")
    elif path.name == DCP_TABLE:
        _check_distributed(path)
    elif path.suffix == ".json" and path.name != RECORD and not is_inside:
        _check_json(path)


def _check_json(path: Path) -> None:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # lines of JSON
            return
        raise ValueError(f"{path} is cut off or damaged: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is cut off or damaged: {error}") from error
    if path.name.endswith(".index.json") and isinstance(read, dict) and isinstance(read.get("weight_map"), dict):
        for name in sorted(set(map(str, read["weight_map"].values()))):
            if not (path.parent / name).is_file():
                raise ValueError(f"{path.parent} is not a complete checkpoint: no {name}, which {path.name} names")


def _check_distributed(path: Path) -> None:
    """Check the sizes of the files of a distributed checkpoint, of which `path` is the table."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    try:
        places = (FileSystemReader(path.parent).read_metadata().storage_data or {}).values()
        ends = {place.relative_path: 0 for place in places}
        for place in places:
            ends[place.relative_path] = max(ends[place.relative_path], place.offset + place.length)
    except (pickle.UnpicklingError, AttributeError, EOFError, ImportError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read, it is cut off or no table of torch: {error}") from error
    for name, end in ends.items():
        size = (path.parent / name).stat().st_size if (path.parent / name).is_file() else None
        if size is None or size < end:
            has = "is missing" if size is None else f"has {size} of {end} bytes"
            raise ValueError(f"{path.parent} cannot be read, a file is cut off or missing: {name} {has}")
