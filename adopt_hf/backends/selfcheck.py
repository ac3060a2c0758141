"""The self-check of the Triton kernel, which must agree with the definition on a device before it is used there.

Each kind of tensors has its own kernel. Before the first use of a kind, a process updates a small `problem` with its
kernel and compares the results with `algorithm.update`, see `agreement`. The verdict is kept, see `verdicts`.
"""

import ctypes
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

from adopt_hf.backends import capture, verdicts
from adopt_hf.backends.agreement import run
from adopt_hf.backends.problem import Kind, Wrong
from adopt_hf.backends.triton import launch as triton
from adopt_hf.backends.verdicts import Verdict

FORMAT = "1"  # version of the check; a new one makes all verdicts void


_known: dict[tuple[torch.device, Kind], Verdict] = {}
_lock = threading.RLock()  # hooks of a layerwise optimizer run in the threads of `backward()`, one per device


def why_not(device: torch.device, kind: Kind) -> str | None:
    """Return why the kernel must not be used on `device` for `kind`, or None. Check it if it has not been checked.

    Raises:
        RuntimeError: If the kind has not been checked before and a graph is being captured, or if the check has left
            the device unusable.
    """
    verdict = _known.get((device, kind))
    if verdict is None:
        with _lock:
            verdict = _known.get((device, kind)) or _found(device, kind)
            _known[device, kind] = verdict
    return verdict.wrong


def _found(device: torch.device, kind: Kind) -> Verdict:
    about = machine(device) | {"kind": str(kind)}
    verdict = verdicts.read(about)
    if verdict is not None:
        return verdict
    if capture.is_capturing():
        raise RuntimeError(
            f"step() is being captured in a graph, and the Triton kernel has not been checked on this GPU for {kind}: "
            "run a few steps before the capture, or `python -m adopt_hf env --check`"
        )
    return check(device, kind)


def check(device: torch.device, kind: Kind) -> Verdict:
    """Check the kernel on `device` now, and keep the verdict.

    Raises:
        RuntimeError: If the device cannot be used after the check.
    """
    about = machine(device) | {"kind": str(kind)}
    try:
        with torch.no_grad(), _undisturbed(device):
            run(device, kind)
        verdict, keep = Verdict(None), True
    except Wrong as wrong:
        verdict, keep = Verdict(_report(str(wrong), about)), True
    except Exception as error:  # compilers and drivers raise errors of any type
        text = " ".join(str(error).split())[:500]
        verdict = Verdict(_report(f"it cannot be run ({type(error).__name__}: {text})", about))
        keep = not _is_alive(device)  # other reasons, such as a missing compiler, may disappear
        if keep:
            verdicts.write(about, verdict)
            raise RuntimeError(
                f"{verdict.wrong}. {device} cannot be used in this process any more: start the program again, which "
                "then runs without the Triton kernel"
            ) from error
    if keep:
        verdicts.write(about, verdict)
    return verdict


def _report(what: str, about: dict[str, str]) -> str:
    where = ", ".join(f"{name} {about[name]}" for name in ("GPU", "driver", "torch", "Triton"))
    return (
        f"the Triton kernel does not pass its check here, for {about['kind']}: {what} [{where}]. Please put this line "
        "and what `python -m adopt_hf env --check` prints into a bug report"
    )


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Make `device` current, and allow waiting for it, even if the user has made waiting an error."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _is_alive(device: torch.device) -> bool:
    try:
        return torch.ones((), dtype=torch.float32, device=device).add(1).item() == 2
    except RuntimeError:
        return False


@cache
def machine(device: torch.device) -> dict[str, str]:
    """Return the properties that a verdict depends on, except the kind."""
    properties = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    settings = {name: value for name, value in os.environ.items() if name.startswith("TRITON_") and "DIR" not in name}
    return {
        "format": FORMAT,
        "GPU": "none" if properties is None else f"{properties.name} ({properties.major}.{properties.minor})",
        "driver": _driver() if properties is not None else "none",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda})",
        "Triton": triton.version(),
        "settings": str(sorted(settings.items())),
        "source": _source(),
    }


def _driver() -> str:
    """Return the version of the NVIDIA driver, and the CUDA version that it reports."""
    kernel = Path("/proc/driver/nvidia/version")
    found = kernel.read_text().splitlines()[0] if kernel.exists() else ""
    number = ctypes.c_int(0)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1").cuDriverGetVersion(
            ctypes.byref(number)
        )
    return " ".join(f"{found.removeprefix('NVRM version:')} CUDA {number.value}".split())


@cache
def _source() -> str:
    """Return a digest of the source of the kernels, their launchers and the definition."""
    package = Path(__file__).parents[1]
    read = [package / f"{name}.py" for name in ("algorithm", "state/quantization", "state/rounding", "state/formats")]
    read += sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in read)).hexdigest()
