"""What `python -m adopt_hf env` says: versions, and which backend runs where, with the reason where one cannot."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from adopt_hf import backends
from adopt_hf.backends import cache

PACKAGES = ("adopt_hf", "torch", "triton", "transformers", "accelerate", "deepspeed", "peft", "trl")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def report() -> str:
    """The text, some fifteen lines."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines.append(f"torch threads: {torch.get_num_threads()}")
    lines.append(f"compiled kernels are kept in: {_cache()}")
    for device in _devices():
        lines += ["", f"{device}: {_name(device)}"]
        lines += [f"  backend={name!r}: {_runs(name, device)}" for name in backends.NAMES]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _cache() -> str:
    try:
        return str(cache.folder())
    except RuntimeError as error:
        return f"nowhere, they are compiled in every process ({error})"


def _devices() -> list[torch.device]:
    return [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def _runs(name: str, device: torch.device) -> str:
    """What the name means there, or for which dtypes it cannot run, and why."""
    chosen: dict[str, list[str]] = {}
    for dtype in DTYPES:
        try:
            what = backends.choose(name, device, dtype, to_use=False).words
        except RuntimeError as error:
            what = f"cannot run: {str(error).split(': ', 1)[1]}"
        chosen.setdefault(what, []).append(str(dtype).removeprefix("torch."))
    if len(chosen) == 1:
        return next(iter(chosen))
    return "; ".join(f"{what} for {', '.join(dtypes)}" for what, dtypes in chosen.items())
