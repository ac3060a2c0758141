"""What `python -m adopt_hf env` says: versions, and which backend runs where, with the reason where one cannot."""

import argparse
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from adopt_hf import backends
from adopt_hf.backends import cache
from adopt_hf.commands import device_check

PACKAGES = ("adopt_hf", "torch", "triton", "transformers", "accelerate", "deepspeed", "peft", "trl")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `python -m adopt_hf env` takes."""
    parser.add_argument(
        "--check", action="store_true", help="do real steps with every backend on every device, and say PASS or FAIL"
    )
    parser.add_argument(
        "--time", action="store_true", help="check, and time steps on GPT-2 124M's shapes for a quarter of a minute"
    )


def main(options: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> None:
    """Print the report, or check, which ends the process with 1 if something fails."""
    if not options.check and not options.time:
        print(report())
        return
    text, right = checked(timed=options.time)
    print(text)
    sys.exit(0 if right else 1)


def report() -> str:
    """Return the text, some fifteen lines."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines.append(f"torch threads: {torch.get_num_threads()}")
    lines.append(f"compiled kernels are kept in: {_cache()}")
    for device in found_devices():
        lines += ["", f"{device}: {_name(device)}"]
        lines += [f"  backend={name!r}: {_runs(name, device)}" for name in backends.NAMES]
        lines.append(f"  backend='auto' with 8-bit moments: {_runs('auto', device, rounded=True)}")
        if device.type == "cuda" and torch.version.hip is None:
            lines.append("  'auto' uses the Triton kernel once it has passed its check; --check does it now")
    return "\n".join(lines)


def checked(timed: bool) -> tuple[str, bool]:
    """Return the text with what a check of every device finds, and whether all is right.

    Args:
        timed: Whether steps are timed, too, for a quarter of a minute on each accelerator, or on the CPU if there is
            none.
    """
    devices = found_devices()
    lines, right = device_check.check(devices)
    if timed:
        for device in devices[1:] or devices:
            lines += device_check.timing(device)
    return "\n".join([report(), *lines]), right


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "is not installed"


def _cache() -> str:
    try:
        path = cache.location()
        reason = cache.why_not_trusted(path) if path.exists() else None
        if reason is not None:
            raise RuntimeError(reason)
        return str(path)
    except RuntimeError as error:
        return f"nowhere, they are compiled in every process ({error})"


def found_devices() -> list[torch.device]:
    """Return the CPU, and all GPUs and other accelerators."""
    devices = [torch.device("cpu")]
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        devices += [torch.device(kind, index) for index in range(module.device_count())]
    return devices + [torch.device("mps")] * torch.backends.mps.is_available()


def _name(device: torch.device) -> str:
    if device.type in ("cuda", "xpu"):
        return str(getattr(torch, device.type).get_device_name(device))
    return platform.processor() or platform.machine()


def _runs(name: str, device: torch.device, rounded: bool = False) -> str:
    """Return what the name means there, or for which dtypes it cannot run, and why."""
    chosen: dict[str, list[str]] = {}
    for dtype in DTYPES[:-1] if rounded or device.type == "mps" else DTYPES:  # without float64
        try:
            what = backends.choose(name, device, dtype, rounded=rounded, to_use=False).words
        except RuntimeError as error:
            what = f"cannot run: {str(error).split(': ', 1)[1]}"
        chosen.setdefault(what, []).append(str(dtype).removeprefix("torch."))
    if len(chosen) == 1:
        return next(iter(chosen))
    return "; ".join(f"{what} for {', '.join(dtypes)}" for what, dtypes in chosen.items())
