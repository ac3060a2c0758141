"""Keep ADOPT's saved state out of every optimizer that is not ADOPT.

The state has Adam's names, because FSDP, distributed checkpoints and DeepSpeed's converter know these. Adam therefore
loads the state. It divides gradients that are already normalised by sqrt(v) again, and moves the weights by thousands
of learning rates in one step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.integrations.patching import Patch
from adopt_hf.state import saved_groups


def load_state_dict(original: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Refuse ADOPT's state in `Optimizer.load_state_dict`, unless the optimizer is ADOPT or wraps one.

    Raises:
        ValueError: If the state is ADOPT's and the optimizer is not. Nothing has been loaded.
    """
    optimizer, state_dict = (*args, *(kwargs[name] for name in ("self", "state_dict") if name in kwargs))[:2]
    refuse(optimizer, state_dict)
    return original(*args, **kwargs)


def refuse(optimizer: Any, state_dict: Any) -> None:
    """Raise ValueError if `state_dict` is the state of an ADOPT, and `optimizer` neither is an ADOPT nor wraps one."""
    saved = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not saved or not saved_groups.is_adopt(saved):
        return
    inner = innermost(optimizer)
    if not is_adopt_optimizer(inner) and not saved_groups.is_adopt(optimizer.param_groups):
        raise ValueError(refusal(type(inner).__name__))


def refusal(name: str, what: str = "the saved state") -> str:
    """Return the error message for an optimizer of the class `name` that is to load `what`, a state of ADOPT."""
    return (
        f"{what} is that of ADOPT, and the optimizer is {name}: ADOPT's exp_avg averages normalised gradients and not "
        f"raw ones, so that the first step of {name} would move the weights by thousands of learning rates. Go on with "
        f'ADOPT (optim="adopt" under the Trainer), {saved_groups.CONVERT.format("adamw")}, or go on with '
        f"{saved_groups.WEIGHTS_ONLY}"
    )


# -- FSDP --------------------------------------------------------------------------------------------------------------


def load_fsdp_optimizer(
    original: Any,
    plugin: Any,
    accelerator: Any,
    optimizer: Any,
    model: Any,
    input_dir: Any,
    index: int = 0,
    **kwargs: Any,
) -> Any:
    """Compare the checkpoint with the optimizer before Accelerate's `load_fsdp_optimizer` reads it.

    The functions of torch that Accelerate calls fail with a KeyError for an entry of the param groups.

    Raises:
        ValueError: If the checkpoint is ADOPT's and the optimizer is not, or the other way round.
    """
    folder = Path(input_dir)
    saved, inner = _saved_groups(folder, index), innermost(optimizer)
    if saved and saved_groups.is_adopt(saved) and not is_adopt_optimizer(inner):
        raise ValueError(refusal(type(inner).__name__, f"the optimizer's state in {folder}"))
    if saved and not saved_groups.is_adopt(saved) and is_adopt_optimizer(inner):
        raise ValueError(
            f"the optimizer's state in {folder} is not that of ADOPT, and the optimizer is {type(inner).__name__}: go "
            f"on with the optimizer that has written it, {saved_groups.CONVERT.format('adopt')} if that was AdamW, or "
            f"go on with {saved_groups.WEIGHTS_ONLY}"
        )
    return original(plugin, accelerator, optimizer, model, input_dir, index, **kwargs)


FSDP_LOAD: dict[str, Any] = {  # a row of this function, but for where it is called from
    "around": load_fsdp_optimizer,
    "takes": "fsdp_plugin, accelerator, optimizer, model, input_dir, optimizer_index",
    "issue": "If the state is another optimizer's, torch's distributed checkpoints fail with a KeyError for an "
    "entry of the param groups.",
    "remove_when": "torch's error says which optimizer the state belongs to.",
    "optional": True,
}


def _saved_groups(folder: Path, index: int) -> list[dict[str, Any]]:
    """Return the param groups of optimizer `index` in an FSDP checkpoint. Those of a sharded one only have keys."""
    sharded = folder if folder.name == f"optimizer_{index}" else folder / f"optimizer_{index}"
    if (sharded / ".metadata").is_file():
        from torch.distributed.checkpoint.filesystem import FileSystemReader  # importing it takes a second

        names = FileSystemReader(sharded).read_metadata().state_dict_metadata
        groups = (name.rpartition(".") for name in names if ".param_groups." in name)
        return [{key: None for _, _, key in groups}]
    whole = folder / ("optimizer.bin" if index == 0 else f"optimizer_{index}.bin")
    for path in (whole, *sorted(folder.glob(f"optimizer_{index}_rank*.bin"))[:1]):
        if path.is_file():
            groups_of: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            return list(groups_of["param_groups"])
    return []  # Accelerate says what is missing


# -- torch -------------------------------------------------------------------------------------------------------------

PATCHES = (
    Patch(
        target="torch.optim:Optimizer.load_state_dict",
        around=load_state_dict,
        takes="self",
        issue="Adam, AdamW and other optimizers with states of these names load ADOPT's state without an error. "
        "Their next step moves the weights by thousands of learning rates.",
        why="The Trainer, Accelerate, TRL, FSDP and distributed checkpoints all call this public method. No other "
        "form of the state would stop Adam and still let DCP and older checkpoints be read (docs/integrations.md, "
        '"Another optimizer").',
        remove_when="torch's optimizers check which optimizer a state belongs to.",
    ),
)
