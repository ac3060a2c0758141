"""Refuse a step that a CUDA graph would capture and then replay with frozen numbers or with fresh moments."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def is_capturing() -> bool:
    """Return whether a graph is being captured on the current stream. Neither waits for CUDA nor initialises it."""
    for module in (torch.cuda, torch.xpu):
        captures = getattr(module, "is_current_stream_capturing", None)  # torch.xpu has it in later releases
        # Without a driver, or in a build without CUDA, the question itself raises.
        if captures is not None and module.is_initialized() and captures():
            return True
    return False


def check(groups: Sequence[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Check that a graph may capture a step of these param groups, if one is being captured. Launches nothing.

    Raises:
        RuntimeError: If a group has `capturable=False`, or a parameter with a gradient has no state on its device yet.
    """
    if torch.compiler.is_compiling() or not is_capturing():
        return
    fixed = [i for i, group in enumerate(groups) if not group["capturable"]]
    if fixed:
        raise RuntimeError(
            f"step() is being captured in a graph, and param group {fixed[0]} has capturable=False: lr, the clip, the "
            "weight decay and the step count come from the host, so every replay would repeat those of this step. "
            "Write ADOPT(..., capturable=True)"
        )
    for group in groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = states.get(p)
            if not state or state["step"].device != p.device:
                raise RuntimeError(
                    f"step() is being captured in a graph, and a parameter of shape {tuple(p.shape)} has no state on "
                    f"{p.device} yet: every replay would begin with new moments. Run a few steps without the graph, "
                    "with gradients for all parameters, and capture afterwards"
                )
