"""Find the optimizer's state in a checkpoint, read it, and write the converted one, for each layout."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from adopt_hf.commands.convert.change import Change
from adopt_hf.commands.convert.files import load
from adopt_hf.commands.convert.universal import Universal
from adopt_hf.integrations.deepspeed.checkpoints import TO_UNIVERSAL
from adopt_hf.state import loading

Advance = Callable[[int], object]
DEFAULT_SEED = 42  # of TrainingArguments
NOT_CONVERTED = {  # pattern of a file or folder -> what it is, and how to go on
    "optimizer_[1-9]*": "the state of several optimizers, which cannot be converted: it must have one",
    "optimizer_0_rank*.bin": "FSDP's LOCAL_STATE_DICT, whose parts belong to one number of processes: save with "
    "FULL_STATE_DICT or SHARDED_STATE_DICT",
    "rank*-of-*-optimizer.pt": "FSDP's state on TPUs, which cannot be converted",
    "optimizer.pt_*": "SageMaker's state, which cannot be converted",
}
FLATTENED = (
    "a distributed checkpoint of torch with a name for each entry and no param groups, as transformers' "
    "save_optimizer_distributed writes it for a model with a DistributedConfig. It cannot be converted: train on with "
    "the optimizer that wrote it"
)


class Layout(Protocol):
    """A way to keep the optimizer's state in a checkpoint."""

    @property
    def name(self) -> str | None:
        """The layout as a mark has it; None if only the mark of the old checkpoint can say it."""

    def is_part(self, path: Path) -> bool:
        """Return whether a path inside the checkpoint holds the state, and is not copied."""

    def size(self, checkpoint: Path) -> int:
        """Return about how many bytes are converted."""

    def groups(self, checkpoint: Path) -> list[dict[str, Any]]:
        """Return the saved param groups."""

    def convert(self, checkpoint: Path, target: Path, change: Change, advance: Advance) -> None:
        """Write the converted state into the folder `target`."""


class Whole:
    """One file with a state dict: the Trainer's, Accelerate's, or FSDP's, in which parameters have names."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.name = "whole" if file == "optimizer.pt" else None

    def is_part(self, path: Path) -> bool:
        return path == Path(self.file)

    def size(self, checkpoint: Path) -> int:
        return (checkpoint / self.file).stat().st_size

    def groups(self, checkpoint: Path) -> list[dict[str, Any]]:
        return _groups_of(load(checkpoint / self.file), checkpoint / self.file)

    def convert(self, checkpoint: Path, target: Path, change: Change, advance: Advance) -> None:
        torch.save(change.state_dict(load(checkpoint / self.file), advance), target / self.file)


class Sharded:
    """A distributed checkpoint of torch (DCP): FSDP's SHARDED_STATE_DICT. Any number of processes reads it."""

    name = None
    folder = "optimizer_0"

    def is_part(self, path: Path) -> bool:
        return path.parts[0] == self.folder

    def size(self, checkpoint: Path) -> int:
        return sum(path.stat().st_size for path in (checkpoint / self.folder).iterdir())

    def groups(self, checkpoint: Path) -> list[dict[str, Any]]:
        return _groups_of(self._load(checkpoint, ".param_groups."), checkpoint / self.folder)

    def convert(self, checkpoint: Path, target: Path, change: Change, advance: Advance) -> None:
        from torch.distributed.checkpoint.state_dict_saver import save

        state = change.state_dict(self._load(checkpoint), advance)
        if change.to == "adopt":  # DCP wants every key that the optimizer has
            state["param_groups"] = [{"seed": DEFAULT_SEED} | group for group in state["param_groups"]]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.distributed is")  # one process, as is meant
            save({"optimizer": state}, checkpoint_id=target / self.folder)

    def _load(self, checkpoint: Path, part: str = "") -> Any:
        """Return the state dict, or the entries whose names contain `part`."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load as load_parts

        folder = checkpoint / self.folder
        try:
            metadata = FileSystemReader(folder).read_metadata()
            entries: dict[str, Any] = {
                name: torch.empty(entry.size, dtype=entry.properties.dtype)
                if isinstance(entry, TensorStorageMetadata)
                else ""
                for name, entry in metadata.state_dict_metadata.items()
                if part in name
            }
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*torch.distributed is")
                load_parts(entries, checkpoint_id=folder)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            foreign = "No module named" in reason or "Can't get attribute" in reason
            what = "it holds an object of a class that is not here" if foreign else "a file is cut off or missing"
            raise ValueError(f"{folder} cannot be read, {what}: {reason}") from error
        paths = metadata.planner_data or {}
        if any(path[0] == "optimizer" and str(path[-1]).startswith("param_groups.") for path in paths.values()):
            raise ValueError(f"{folder} is {FLATTENED}")
        if not any(paths.get(name, ())[:2] == ("optimizer", "param_groups") for name in entries):
            raise ValueError(f"{folder} is not the state of an optimizer: it has no param_groups")
        return _nested(entries, paths)["optimizer"]


def _nested(entries: dict[str, Any], paths: dict[str, Any]) -> Any:
    """Return the dict of dicts and lists that a distributed checkpoint was made of."""
    whole: dict[Any, Any] = {}
    for name, value in entries.items():
        *path, last = paths[name]
        inside = whole
        for key in path:
            inside = inside.setdefault(key, {})
        inside[last] = value
    groups = whole["optimizer"]["param_groups"]
    whole["optimizer"]["param_groups"] = [groups[index] for index in sorted(groups)]
    whole["optimizer"].setdefault("state", {})
    return whole


def _groups_of(saved: Any, path: Path) -> list[dict[str, Any]]:
    if not isinstance(saved, dict) or not isinstance(saved.get("param_groups"), list):
        raise ValueError(f"{path} is not the state of an optimizer: it has no param_groups")
    loading.check_structure({"state": {}, **saved})  # DCP's groups are read without the state
    return list(saved["param_groups"])


def find(checkpoint: Path) -> Layout:
    """Return the layout of a checkpoint's optimizer state.

    Raises:
        ValueError: If there is none, or it is one that cannot be converted.
    """
    for pattern, what in NOT_CONVERTED.items():
        for path in sorted(checkpoint.glob(pattern)):
            raise ValueError(f"{path.name} in {checkpoint} is {what}")
    for file in ("optimizer.pt", "optimizer.bin"):
        if (checkpoint / file).is_file():
            return Whole(file)
    if (checkpoint / Sharded.folder / ".metadata").is_file():
        return Sharded()
    for path in sorted(checkpoint.glob("optimizer/.metadata")):
        raise ValueError(f"{path.parent} is {FLATTENED}")
    universal = Universal.find(checkpoint)
    if universal is not None:
        return universal
    for path in sorted(checkpoint.glob("global_step*")):
        if re.fullmatch(r"global_step\d+", path.name) and path.is_dir():
            command = TO_UNIVERSAL.replace("CHECKPOINT", str(checkpoint)).replace("global_stepN", path.name)
            raise ValueError(
                f"{path} is DeepSpeed's own state, whose parts belong to one number of processes: make a universal "
                f"checkpoint of it with `{command} --inject_missing_state`, and convert again"
            )
    raise ValueError(
        f"{checkpoint} has no optimizer state (no optimizer.pt, optimizer.bin, optimizer_0 or global_stepN_universal): "
        "it may have been saved with save_only_model"
    )
