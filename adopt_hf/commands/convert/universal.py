"""DeepSpeed's universal checkpoints: a folder for each parameter, with a file for each moment, and one with the groups.

    global_stepN_universal/zero/optimizer_state.pt        param groups and other state of the whole optimizer
    global_stepN_universal/zero/NAME/exp_avg.pt           the moment, or a dict with it as "param"; also exp_avg_sq.pt
    global_stepN_universal/zero/NAME/step.pt              stages 1 and 2; stage 3 has one step in optimizer_state.pt
    latest_universal                                      the folder's name

All param groups have the same betas and eps, because a file does not say of which group its parameter is.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adopt_hf.commands.convert.change import Change
from adopt_hf.commands.convert.files import files_in, load
from adopt_hf.state import conversion

GROUPS, STEP = "optimizer_state.pt", "step.pt"
INNER = "optimizer_state_dict"  # stage 3: the inner optimizer's state dict, of one process
SAME = ("betas", "eps")


class Universal:
    """The universal checkpoint inside a checkpoint of the Trainer or of Accelerate."""

    name = None

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.zero = Path(tag, "zero")

    @classmethod
    def find(cls, checkpoint: Path) -> "Universal | None":
        """Return the one that `latest_universal` names, or the first one that there is.

        Raises:
            ValueError: If `latest_universal` names one that is not there.
        """
        latest = checkpoint / "latest_universal"
        there = [p.name for p in sorted(checkpoint.glob("*_universal")) if (p / "zero" / GROUPS).is_file()]
        if not latest.is_file():
            return cls(there[0]) if there else None
        tag = latest.read_text(encoding="utf-8", errors="replace").strip()
        if tag not in there:
            raise ValueError(f"{latest} names {tag!r}, and {checkpoint} has no {Path(tag, 'zero', GROUPS)}")
        return cls(tag)

    def is_part(self, path: Path) -> bool:
        """Return whether it is converted here, or is DeepSpeed's own state, which the new checkpoint does not have."""
        of_moments = path.parts[:2] == self.zero.parts and path.name in (
            GROUPS,
            *(f"{m}.pt" for m in conversion.FLOATS),
        )
        return (
            of_moments
            or path.name == "latest"
            or (path.parts[0].startswith("global_step") and path.parts[0] != self.tag)
        )

    def size(self, checkpoint: Path) -> int:
        return sum(path.stat().st_size for folder in self._parameters(checkpoint) for path in self._moments(folder))

    def groups(self, checkpoint: Path) -> list[dict[str, Any]]:
        saved = self._read_groups(checkpoint)
        groups = saved.get(INNER, saved)["param_groups"]
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            raise ValueError(f"{GROUPS} has param_groups {groups!r:.200}, which must be a list of dicts")
        return groups

    def convert(self, checkpoint: Path, target: Path, change: Change, advance: Callable[[int], object]) -> None:
        saved = self._read_groups(checkpoint)
        olds = self.groups(checkpoint)
        for name in SAME:
            if len({str(group.get(name)) for group in olds}) > 1:
                raise ValueError(f"the param groups have different {name}, and the files do not say which is whose")
        # DeepSpeed leaves the step count on the CPU, which a fused AdamW on a GPU does not take.
        news = change._replace(fused=None).groups(olds)
        step = None
        if INNER in saved:
            states = saved[INNER].get("state", {})
            step = next((state["step"] for state in states.values() if "step" in state), None)
            # DeepSpeed only reads the step: the moments here are those of one process.
            saved[INNER] = {**saved[INNER], "param_groups": news, "state": {i: {"step": step} for i in states}}
        if "param_groups" in saved:
            saved["param_groups"] = news
        (target / self.zero).mkdir(parents=True, exist_ok=True)
        torch.save(saved, target / self.zero / GROUPS)
        for folder in self._parameters(checkpoint):
            self._convert_parameter(folder, target / folder.relative_to(checkpoint), change, olds[0], news[0], step)
            advance(sum(path.stat().st_size for path in self._moments(folder)))

    def _convert_parameter(self, folder: Path, target: Path, change: Change, old: Any, new: Any, step: Any) -> None:
        files = {name: load(folder / f"{name}.pt") for name in conversion.FLOATS}
        if (folder / STEP).is_file():
            step = load(folder / STEP)
        what = f"the state of parameter {folder.name}"
        for name, file in files.items():
            if not isinstance(file, Tensor) and not (isinstance(file, dict) and isinstance(file.get("param"), Tensor)):
                raise ValueError(f"{folder / name}.pt is not what DeepSpeed writes: it holds no tensor")
        moments = {name: file if isinstance(file, Tensor) else file["param"] for name, file in files.items()}
        state = change.state({"step": step, **moments}, old, new, what)
        target.mkdir(parents=True, exist_ok=True)
        for name, file in files.items():
            changed = state[name] if isinstance(file, Tensor) else {**file, "param": state[name]}
            torch.save(changed, target / f"{name}.pt")

    def _parameters(self, checkpoint: Path) -> Iterator[Path]:
        """Yield the folder of each parameter, each with both moments."""
        for path in files_in(checkpoint / self.zero):
            if path.name == "exp_avg.pt":
                folder = (checkpoint / self.zero / path).parent
                for moment in self._moments(folder):
                    if not moment.is_file():
                        raise ValueError(f"{checkpoint} is not a complete checkpoint: no {moment}")
                yield folder

    def _moments(self, folder: Path) -> list[Path]:
        return [folder / f"{name}.pt" for name in conversion.FLOATS]

    def _read_groups(self, checkpoint: Path) -> dict[str, Any]:
        path = checkpoint / self.zero / GROUPS
        saved = load(path, weights_only=False)  # it holds objects of DeepSpeed, which reads it in the same way
        inner: Any = saved.get(INNER, saved) if isinstance(saved, dict) else None
        if not isinstance(saved, dict) or not isinstance(inner, dict) or "param_groups" not in inner:
            raise ValueError(f"{path} is not what DeepSpeed writes: it has no param_groups")
        return saved
