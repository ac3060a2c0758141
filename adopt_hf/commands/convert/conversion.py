"""Convert one checkpoint: check it, write the new one next to it, and say how to continue."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from adopt_hf.commands.convert import complete, folder, layouts
from adopt_hf.commands.convert.change import NAMES, Change, given_options
from adopt_hf.commands.convert.complete import RECORD
from adopt_hf.commands.convert.files import files_in
from adopt_hf.commands.convert.layouts import Layout
from adopt_hf.integrations import checkpoints
from adopt_hf.integrations.checkpoints import MARK, TRAINER_STATE, DiskFullError, step_of
from adopt_hf.integrations.checkpoints.marks import write_mark
from adopt_hf.state import saved_groups

ERRORS = (ValueError, OSError, DiskFullError)
TITLES = {"adopt": "ADOPT", "adamw": "AdamW"}
GO_ON = {"adopt": 'optim="adopt"', "adamw": 'optim="adamw_torch_fused"'}
Advance = Callable[[int], object]


def convert(
    checkpoint: Path, to: str, output: Path | None = None, *, in_place: bool = False, optim_args: str | None = None
) -> str:
    """Convert a checkpoint, and return what to tell the user.

    Args:
        checkpoint: The folder of one checkpoint.
        to: "adopt" or "adamw".
        output: The new folder. Default: that of `beside`.
        in_place: Replace `checkpoint` instead.
        optim_args: Options of the new optimizer, as text.

    Raises:
        ValueError: If the checkpoint cannot be converted, or the output exists. Nothing has been changed.
        OSError: If a file cannot be read or written.
        DiskFullError: If the disk is full.
    """
    given = given_options(to, optim_args)
    complete.check(checkpoint)
    layout = layouts.find(checkpoint)
    target = checkpoint if in_place else output or beside(checkpoint, to)
    if not in_place and (target.exists() or target.is_symlink()):
        raise ValueError(f"{target} exists, and is not overwritten: write --output with the name of a new folder")
    target = target.resolve()  # a link is not replaced by a folder
    if checkpoint.resolve() in target.parents:
        raise ValueError(f"{target} is inside of the checkpoint, which must stay as it is: write another --output")
    folder.clean(target)
    try:
        old = layout.groups(checkpoint)
        change = Change(to, given, _before(checkpoint, to))
        new = change.groups(old)
    except ValueError as error:
        raise ValueError(f"{checkpoint} cannot be converted to {TITLES[to]}: {error}") from error
    with checkpoints.names_a_full_disk(target.parent), folder.written(target, replaces=in_place) as unfinished:
        _write(checkpoint, unfinished, layout, change, old)
    return _said(checkpoint if in_place else _shown(target), to, new, replaced=in_place)


def beside(checkpoint: Path, to: str) -> Path:
    """Return the default output: run-adopt/checkpoint-500 for run/checkpoint-500."""
    checkpoint = checkpoint.resolve()  # it may be "."
    if step_of(checkpoint) is None:
        return checkpoint.with_name(f"{checkpoint.name}-{to}")
    run = checkpoint.parent
    return run.with_name(f"{run.name}-{to}") / checkpoint.name


def in_a_line(error: BaseException) -> str:
    """Return an error's message without line breaks."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return " ".join(text.split())


def _before(checkpoint: Path, to: str) -> list[Mapping[str, Any]]:
    """Return the param groups that the optimizer `to` had before an earlier conversion of this checkpoint."""
    path = checkpoint / RECORD
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        groups: list[Mapping[str, Any]] = [
            {name: tuple(value) if isinstance(value, list) else value for name, value in group.items()}
            for group in record["groups"]
        ]
        return groups if record["from"] == TITLES[to] else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{RECORD} cannot be read, remove it: {error}") from error


def _write(checkpoint: Path, target: Path, layout: Layout, change: Change, old: list[dict[str, Any]]) -> None:
    """Write all files of the new checkpoint."""
    copied = [
        path for path in files_in(checkpoint) if not layout.is_part(path) and path.as_posix() not in (MARK, RECORD)
    ]
    total = layout.size(checkpoint) + sum((checkpoint / path).stat().st_size for path in copied)
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="converting", disable=None) as bar:
        layout.convert(checkpoint, target, change, bar.update)
        bar.set_description("copying")
        for path in copied:
            folder.copy(checkpoint / path, target / path, bar.update)
    source = TITLES["adamw" if change.to == "adopt" else "adopt"]
    record = {"from": source, "to": TITLES[change.to], "groups": [_plain(g) for g in old]}
    (target / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
    _mark(checkpoint, target, layout, change.to)


def _mark(checkpoint: Path, target: Path, layout: Layout, to: str) -> None:
    """Mark the new checkpoint as complete if the old one was, or if its layout is known without its mark."""
    name, step = layout.name, None
    if (checkpoint / MARK).exists():
        marked = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        name, step = marked.get("layout", name), int(marked["step"])
    elif (checkpoint / TRAINER_STATE).is_file():
        step = complete.number_in(checkpoint / TRAINER_STATE, "global_step")
    if name is not None and step is not None:
        write_mark(target, step, layout=name, optimizer={"class": NAMES[to], "is_adopt": to == "adopt"})


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a param group as JSON has them."""
    found = {name: saved_groups.plain(value) for name, value in group.items() if name != "params"}
    found = {name: value.tolist() if isinstance(value, Tensor) else value for name, value in found.items()}
    return {name: value for name, value in found.items() if isinstance(value, bool | int | float | str | tuple | None)}


def _shown(path: Path) -> Path:
    """Return a path as the user would write it here: relative, where it is below the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _said(target: Path, to: str, groups: list[dict[str, Any]], *, replaced: bool) -> str:
    """Return a line for the new checkpoint, one for each param group, and one that says how to go on."""
    names = ("lr", "betas", "eps", "weight_decay", "decouple", "clip_exp", "beta2_warmup")
    lines = [f"{target} has the state of {TITLES[to]}"]
    for index, group in enumerate(groups):
        options = ", ".join(f"{name}={saved_groups.plain(group[name])}" for name in names if name in group)
        lines.append(f"  param group {index}: {options}")
    where = "" if replaced else ", and an output_dir of its own"
    lines.append(f'go on with {GO_ON[to]}, resume_from_checkpoint="{target}"{where}')
    return "\n".join(lines)
