"""The table of backends, and which one runs a bucket.

A backend is a function `step(params, grads, exp_avgs, exp_avg_sqs, scalars)`: lists of real, strided tensors of one
device, one dtype and one step count; the moments are of `algorithm.state_dtype`. It updates parameters and moments in
place by the equations of `algorithm`, to rounding, and leaves the gradients alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars
from adopt_hf.backends import foreach, reference

BackendStep = Callable[[list[Tensor], list[Tensor], list[Tensor], list[Tensor], StepScalars], None]

NAMES = ("auto", "reference", "foreach", "fused")

TABLE: dict[str, BackendStep] = {"foreach": foreach.step, "reference": reference.step}


def check_name(name: object) -> str:
    """Return `name`; ValueError if it is none of `NAMES`."""
    if isinstance(name, str) and name in NAMES:
        return name
    raise ValueError(f"backend must be one of {', '.join(map(repr, NAMES))}, got {name!r}")


def choose(name: str, device: torch.device, dtype: torch.dtype) -> BackendStep:
    """The backend for a bucket on `device` with parameters of `dtype`.

    "auto" is the fastest that runs there.

    Raises:
        RuntimeError: the one asked for by name cannot run there; the message says why.
    """
    if name == "auto":
        return TABLE["foreach"]
    if name not in TABLE:
        raise RuntimeError(
            f"backend={name!r} cannot run on {device.type} tensors of {dtype}: this version of adopt_hf has no fused "
            f"kernel. Allowed here: 'auto', {', '.join(map(repr, TABLE))}"
        )
    return TABLE[name]
