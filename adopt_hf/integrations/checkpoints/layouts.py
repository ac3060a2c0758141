"""The launch modes that can read a checkpoint."""

import json
from pathlib import Path

from accelerate.state import AcceleratorState

from adopt_hf.integrations.checkpoints.folders import MARK, Folder


def layout() -> str:
    """Return the layout of the checkpoints of this run's launch mode. Only a run with the same layout can read them.

    The Trainer would load the files that it knows from a checkpoint of another layout, and leave out the rest.
    """
    state = AcceleratorState()
    kind = state.distributed_type.value
    if kind == "DEEPSPEED":
        return f"DeepSpeed ZeRO {state.deepspeed_plugin.zero_stage}"
    if kind == "FSDP":
        return f"FSDP{state.fsdp_plugin.fsdp_version} {state.fsdp_plugin.state_dict_type.name}"
    return "whole"  # one process, or DDP


def layout_of(checkpoint: Folder) -> str:
    """Return the layout of a complete checkpoint."""
    checkpoint = Path(checkpoint)
    return str(json.loads((checkpoint / MARK).read_text(encoding="utf-8"))["layout"])


def check_layout(checkpoint: Folder) -> None:
    """Raise ValueError if this process cannot read `checkpoint`, because it was written in another launch mode."""
    theirs, ours = layout_of(checkpoint), layout()
    if theirs != ours:
        raise ValueError(
            f"checkpoint {checkpoint} was written with another launcher config: its layout is {theirs!r}, and this run "
            f"can only read {ours!r}. Start the run with the launcher config of the checkpoint"
        )
