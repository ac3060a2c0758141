"""The table of backends, and which one runs a bucket.

A backend updates the parameters and moments of buckets in place by the equations of `algorithm`, to rounding, and
leaves the gradients alone.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from adopt_hf.backends import foreach, reference, selfcheck
from adopt_hf.backends.bucket import Bucket, CapturableBucket, RoundedBucket
from adopt_hf.backends.cpu import launch as cpu_launch
from adopt_hf.backends.problem import Kind
from adopt_hf.backends.triton import launch as triton_launch
from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.state.formats import Format, format_of

logger = logging.getLogger("adopt_hf")


class Backend(NamedTuple):
    """One way to run the update."""

    words: str
    why_not: Callable[[torch.device, torch.dtype], str | None]  # it cannot update parameters of a dtype on a device
    step: Callable[[Sequence[Bucket]], None]
    step_capturable: Callable[[Sequence[CapturableBucket]], None] | None = None  # None: its numbers are on the host
    step_rounded: Callable[[Sequence[RoundedBucket]], None] | None = None
    on_addresses: bool = False  # it takes tensors that are memory, not subclasses that handle their operations
    of_devices: tuple[str, ...] = ()  # that it was made for, and where it is the fastest; (): for none


def _anywhere(device: torch.device, dtype: torch.dtype) -> None:
    return None


REFERENCE = Backend(
    "the definition, tensor by tensor", _anywhere, reference.step, reference.step_capturable, reference.step_rounded
)
FOREACH = Backend("foreach operations of torch", _anywhere, foreach.step)
CPU = Backend(
    "the compiled CPU kernel",
    cpu_launch.why_not,
    cpu_launch.step,
    step_rounded=cpu_launch.step,
    on_addresses=True,
    of_devices=("cpu",),
)
TRITON = Backend(
    "the Triton kernel",
    triton_launch.why_not,
    triton_launch.step,
    triton_launch.step_capturable,
    triton_launch.step_rounded,
    on_addresses=True,
    of_devices=("cuda",),
)

# By name, the first that can run.
TABLE = {
    "auto": (CPU, TRITON, FOREACH, REFERENCE),
    "fused": (CPU, TRITON),
    "foreach": (FOREACH,),
    "reference": (REFERENCE,),
}

NAMES = tuple(TABLE)  # the values of the option `backend`
PLAIN = Format(32, 0, False)


class Wanted(NamedTuple):
    """What a backend is chosen for."""

    device: torch.device
    dtype: torch.dtype
    capturable: bool
    plain: bool
    rounded: bool


def check(group: Mapping[str, Any]) -> None:
    """Check that the backend of a param group can update its parameters.

    Parameters that are still to change are skipped: those on the meta device, frozen ones, and lazy ones.

    Raises:
        RuntimeError: If the backend was asked for by name and cannot run on a parameter.
    """
    for i, p in enumerate(group["params"]):
        if p.device.type != "meta" and p.requires_grad and not is_lazy(p):
            format = format_of(p, group, i, is_flat=False)
            choose(group["backend"], p.device, p.dtype, capturable=group["capturable"], format=format, to_use=False)


def choose(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    capturable: bool = False,
    plain: bool = True,
    grad_dtype: torch.dtype | None = None,
    coupled: bool = False,
    clipped: bool = True,
    format: Format = PLAIN,
    to_use: bool = True,
) -> Backend:
    """Return the backend for parameters of `dtype` on `device`; "auto" is the fastest that runs there.

    Where "auto" falls back to a slower one than the device has, one warning a process says why.

    Args:
        capturable: Whether the numbers of the step are on the device.
        plain: Whether the local tensors are memory, rather than subclasses that handle their operations.
        grad_dtype: The dtype of the gradients; None means that of the parameters.
        coupled: Whether weight decay is added to the gradients.
        clipped: Whether there is a clip.
        format: How the moments are stored and the parameters rounded. Default: float32, and to nearest.
        to_use: Whether it is used now. If so the Triton kernel has to have passed its check on the device.

    Raises:
        RuntimeError: If the one asked for by name cannot run there, or if a graph is being captured and the kernel has
            not been checked; the message says why.
    """
    wanted = Wanted(device, dtype.to_real(), capturable, plain, not format.is_plain)
    skipped: list[tuple[Backend, str]] = []
    disproved = False
    for backend in TABLE[HYPERPARAMETERS["backend"].check("backend", name)]:
        if name == "auto" and backend.of_devices and device.type not in backend.of_devices:
            continue
        reason = _why_not(backend, wanted)
        if reason is None and to_use and backend is TRITON and device.type == "cuda":
            kept = format._replace(block_size=format.block_size if format.bits == 8 else 0)
            clipped = clipped or not capturable  # other kernels have the clip as a number
            kind = Kind(wanted.dtype, (grad_dtype or dtype).to_real(), coupled, capturable, kept, clipped)
            reason = selfcheck.why_not(device, kind)
            disproved = reason is not None
        if reason is None:
            if to_use and name == "auto":
                _say_fallback(backend, wanted, skipped, disproved)
            return backend
        skipped.append((backend, reason))
    allowed = [
        other for other in NAMES if other != name and any(_why_not(backend, wanted) is None for backend in TABLE[other])
    ]
    raise RuntimeError(
        f"backend={name!r} cannot run on {device.type} tensors of {dtype}: "
        f"{'; '.join(reason for _, reason in skipped)}. Allowed here: {', '.join(map(repr, allowed))}"
    )


def _why_not(backend: Backend, wanted: Wanted) -> str | None:
    if wanted.capturable and backend.step_capturable is None:
        return "with capturable=True the numbers of a step are on the device, and it takes them from the host"
    if wanted.rounded and backend.step_rounded is None:
        return "it does not round stochastically, as state_bits below 32 and bf16_stochastic_round ask for"
    if backend.on_addresses and not wanted.plain:
        return "it works on memory, which tensors of a subclass hide"
    return backend.why_not(wanted.device, wanted.dtype)


_said: set[tuple[str, bool] | str] = set()  # of what a fallback has been told: the devices, rounded or not; the check


def _say_fallback(chosen: Backend, wanted: Wanted, skipped: list[tuple[Backend, str]], disproved: bool) -> None:
    """Say once a process, for a kind of device, that a step takes longer, or more memory, than it need.

    Nothing is said where there is no kernel anyway: for `capturable` on a CPU, for tensors of a subclass.
    """
    device = wanted.device.type
    reasons = [reason for backend, reason in skipped if backend.of_devices]  # why not the kernel for this device
    about: tuple[str, bool] | str = "check" if disproved else (device, wanted.rounded)
    if chosen.of_devices or about in _said:
        return
    if wanted.rounded:
        cost = "dozens of passes over memory"
        reasons = reasons or [f"there is no kernel for {device} tensors"]
    elif disproved or (reasons and wanted.plain and not wanted.capturable and torch.version.hip is None):
        cost = "more time or memory than the compiled kernel"
    else:
        return
    _said.add(about)
    logger.warning(
        'backend="auto" updates %s tensors by %s, which takes %s: %s', device, chosen.words, cost, "; ".join(reasons)
    )
