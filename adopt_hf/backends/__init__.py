"""The table of backends, and which one runs a bucket.

A backend updates the parameters and moments of buckets in place by the equations of `algorithm`, to rounding, and
leaves the gradients alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from adopt_hf.algorithm import Hyperparameter
from adopt_hf.backends import cpu, foreach, reference, triton
from adopt_hf.backends.bucket import Bucket, CapturableBucket, RoundedBucket


class Backend(NamedTuple):
    """One way to run the update."""

    why_not: Callable[[torch.device, torch.dtype], str | None]  # it cannot update parameters of a dtype on a device
    step: Callable[[Sequence[Bucket]], None]
    step_capturable: Callable[[Sequence[CapturableBucket]], None] | None = None  # None: its numbers are on the host
    step_rounded: Callable[[Sequence[RoundedBucket]], None] | None = None
    on_addresses: bool = False  # it takes tensors that are memory, not subclasses that handle their operations


def _anywhere(device: torch.device, dtype: torch.dtype) -> None:
    return None


REFERENCE = Backend(_anywhere, reference.step, reference.step_capturable, reference.step_rounded)
FOREACH = Backend(_anywhere, foreach.step)
CPU = Backend(cpu.why_not, cpu.step, step_rounded=cpu.step_rounded, on_addresses=True)
TRITON = Backend(triton.why_not, triton.step, triton.step_capturable, triton.step_rounded, on_addresses=True)

# By name, the first that can run. "auto" has those that were measured to be the fastest, and the Triton kernel has not
# been measured yet.
TABLE = {
    "auto": (CPU, FOREACH, REFERENCE),
    "fused": (CPU, TRITON),
    "foreach": (FOREACH,),
    "reference": (REFERENCE,),
}

# Where results are rounded "auto" does not wait for that measurement: on a GPU it would be left with the definition,
# which is dozens of passes over memory, many of them of int64, and as many temporaries.
AUTO_ROUNDED = (CPU, TRITON, REFERENCE)

NAMES = tuple(TABLE)
CAPTURABLE = Hyperparameter(bool, False)


def check_name(name: object) -> str:
    """Return `name`; ValueError if it is none of `NAMES`."""
    if isinstance(name, str) and name in NAMES:
        return name
    raise ValueError(f"backend must be one of {', '.join(map(repr, NAMES))}, got {name!r}")


def choose(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    capturable: bool = False,
    plain: bool = True,
    rounded: bool = False,
) -> Backend:
    """The backend for parameters of `dtype` on `device`; "auto" is the fastest that runs there.

    Args:
        capturable: whether the numbers of the step are on the device.
        plain: whether the local tensors are memory, rather than subclasses that handle their operations.
        rounded: whether moments have fewer than 32 bits, or parameters are rounded stochastically.

    Raises:
        RuntimeError: the one asked for by name cannot run there; the message says why.
    """
    reasons = []
    table = TABLE | {"auto": AUTO_ROUNDED} if rounded else TABLE
    for backend in table[check_name(name)]:
        reason = _why_not(backend, device, dtype, capturable, plain, rounded)
        if reason is None:
            return backend
        reasons.append(reason)
    allowed = [
        other
        for other in NAMES
        if any(_why_not(backend, device, dtype, capturable, plain, rounded) is None for backend in table[other])
    ]
    raise RuntimeError(
        f"backend={name!r} cannot run on {device.type} tensors of {dtype}: {'; '.join(reasons)}. "
        f"Allowed here: {', '.join(map(repr, allowed))}"
    )


def _why_not(
    backend: Backend, device: torch.device, dtype: torch.dtype, capturable: bool, plain: bool, rounded: bool
) -> str | None:
    if capturable and backend.step_capturable is None:
        return "with capturable=True the numbers of a step are on the device, and it takes them from the host"
    if rounded and backend.step_rounded is None:
        return "it does not round stochastically, as state_bits below 32 and bf16_stochastic_round ask for"
    if backend.on_addresses and not plain:
        return "it works on memory, which tensors of a subclass hide"
    return backend.why_not(device, dtype.to_real())
