"""The table of backends, and the choice of one for a bucket.

A backend updates the parameters and moments of buckets in place. It computes the equations of `algorithm` up to
rounding, and only reads the gradients.
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
    why_not: Callable[[torch.device, torch.dtype], str | None]  # None if it can run
    step: Callable[[Sequence[Bucket]], None]
    step_capturable: Callable[[Sequence[CapturableBucket]], None] | None = None  # None: not supported
    step_rounded: Callable[[Sequence[RoundedBucket]], None] | None = None
    on_addresses: bool = False  # whether it needs raw addresses, which tensor subclasses lack
    of_devices: tuple[str, ...] = ()  # device types that it was made for, and is the fastest on; (): none


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

# The backends of each name, in the order of preference.
TABLE = {
    "auto": (CPU, TRITON, FOREACH, REFERENCE),
    "fused": (CPU, TRITON),
    "foreach": (FOREACH,),
    "reference": (REFERENCE,),
}

NAMES = tuple(TABLE)  # the values of the option `backend`
PLAIN = Format(32, 0, False)


class Wanted(NamedTuple):
    """The tensors that a backend is chosen for."""

    device: torch.device
    dtype: torch.dtype
    capturable: bool
    plain: bool
    rounded: bool


def check(group: Mapping[str, Any]) -> None:
    """Check that the backend of a param group can update its parameters.

    Parameters on the meta device, frozen ones and lazy ones are skipped, because they will change.

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
    """Return the backend for parameters of `dtype` on `device`.

    If "auto" falls back to a slower backend than the device's own, one warning per process gives the reason.

    Args:
        name: Name of a backend, or "auto" for the fastest that can run.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        capturable: Whether the numbers of the step are on the device. Default: False.
        plain: Whether the local tensors are plain memory, and not tensor subclasses. Default: True.
        grad_dtype: Dtype of the gradients. Default: that of the parameters.
        coupled: Whether weight decay is added to the gradients. Default: False.
        clipped: Whether the normalised gradient is clipped. Default: True.
        format: Storage format of moments and parameters. Default: float32 moments, rounding to nearest.
        to_use: Whether a step follows. The Triton kernel must have passed its check on the device then. Default: True.

    Raises:
        RuntimeError: If the backend asked for by name cannot run, or if a graph is being captured and the kernel has
            not been checked. The message gives the reason.
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
            clipped = clipped or not capturable  # to other kernels the clip is a number
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
        return "it does not support capturable=True"
    if wanted.rounded and backend.step_rounded is None:
        return "it does not support stochastic rounding, which state_bits < 32 and bf16_stochastic_round require"
    if backend.on_addresses and not wanted.plain:
        return "it needs raw memory addresses, which tensor subclasses do not expose"
    return backend.why_not(wanted.device, wanted.dtype)


SLOWER = "3 to 8 times the time of the compiled kernel"  # docs/benchmarks.md
_said: set[tuple[str, bool] | str] = set()  # the fallbacks already logged: (device type, rounded), or "check"


def _say_fallback(chosen: Backend, wanted: Wanted, skipped: list[tuple[Backend, str]], disproved: bool) -> None:
    """Warn once per process and device type that a step takes more time or memory than the device's kernel would.

    No warning is given if no kernel exists: for `capturable` on a CPU, and for tensor subclasses.
    """
    device = wanted.device.type
    reasons = [reason for backend, reason in skipped if backend.of_devices]  # why this device's kernel cannot run
    about: tuple[str, bool] | str = "check" if disproved else (device, wanted.rounded)
    if chosen.of_devices or about in _said:
        return
    if wanted.rounded:
        cost = "dozens of passes over memory"
        reasons = reasons or [f"there is no kernel for {device} tensors"]
    elif disproved or (reasons and wanted.plain and not wanted.capturable and torch.version.hip is None):
        cost = SLOWER if device == "cpu" else "more time or memory than the compiled kernel"
    else:
        return
    _said.add(about)
    logger.warning(
        'backend="auto" updates %s tensors by %s, which takes %s: %s', device, chosen.words, cost, "; ".join(reasons)
    )
