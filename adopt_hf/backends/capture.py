"""Refuse a step that a CUDA graph would capture and replay with frozen numbers or with new moments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_raises: set[str] = set()  # questions that raise an error in this process, because there is no driver


def is_capturing() -> bool:
    """Return whether a graph is being captured on the current stream, without initialising CUDA."""
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        captures = getattr(module, "is_current_stream_capturing", None)  # in later releases of torch.xpu
        if captures is None:
            continue
        if module.is_initialized():
            if captures():
                return True
        elif _accelerator() == kind and _answer(kind, captures):
            return True
    return False


def _accelerator() -> str | None:
    """Return the accelerator type that torch was built for, or None without one or without a driver.

    Every step calls this, which takes less than a microsecond on a CPU, so it notices an accelerator that comes later.
    """
    accelerator = _answer("accelerator", torch.accelerator.current_accelerator)
    return None if accelerator is None else accelerator.type


def _answer(name: str, question: Callable[[], Any]) -> Any:
    """Return the answer, or None if a build for GPUs runs without a driver. The question raises an error there."""
    if name in _raises:
        return None
    try:
        return question()
    except RuntimeError:
        _raises.add(name)
        return None


def check(groups: Sequence[Mapping[str, Any]], states: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Check that a graph that is being captured may contain a step of these param groups. Launches nothing.

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
