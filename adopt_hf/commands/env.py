"""Report for `python -m adopt_hf env`: the versions, the backend that runs on each device, and the patches."""

import argparse
import contextlib
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from adopt_hf import backends, integrations
from adopt_hf.backends import cache
from adopt_hf.backends.cpu import library
from adopt_hf.commands import device_check
from adopt_hf.integrations import patching
from adopt_hf.state.formats import Format

PACKAGES = ("adopt_hf", "torch", "triton", "transformers", "accelerate", "deepspeed", "peft", "trl")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m adopt_hf env`."""
    parser.add_argument(
        "--check", action="store_true", help="do real steps with every backend on every device, and report PASS or FAIL"
    )
    parser.add_argument(
        "--time", action="store_true", help="check, and time steps on the shapes of GPT-2 124M for 15 seconds"
    )


def main(options: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> None:
    """Print the report or a check. If something fails in the check, the exit code is 1."""
    if not options.check and not options.time:
        print(report())
        return
    text, right = checked(timed=options.time)
    print(text)
    sys.exit(0 if right else 1)


def report() -> str:
    """Return the report, some forty lines. Imports transformers, Accelerate and DeepSpeed, if they are installed."""
    lines = [f"Python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines.append(f"torch threads: {torch.get_num_threads()}")
    lines.append(f"compiled kernels are cached in: {_cache()}")
    for device in found_devices():
        lines += ["", f"{device}: {_name(device)}"]
        if device.type == "cpu":
            lines.append(f"  the compiled CPU kernel: {_cpu_kernel()}")
        lines += [f"  backend={name!r}: {_runs(name, device)}" for name in backends.NAMES]
        lines.append(f"  backend='auto' with 8-bit moments: {_runs('auto', device, Format(8, 256, False))}")
        if device.type == "cuda" and torch.version.hip is None:
            lines.append(
                "  'auto' uses the Triton kernel after its self-check has passed; --check runs the self-check now"
            )
    for name, patched in integrations.PATCHED.items():
        lines += ["", f"functions of {name} that adopt_hf replaces (docs/integrations.md says why):"]
        lines += _patches(name, patched)
    return "\n".join(lines)


def checked(timed: bool) -> tuple[str, bool]:
    """Return the report with the results of a check of every device, and whether everything passed.

    Args:
        timed: Whether to time steps, too, for 15 seconds on each accelerator, or on the CPU if there is none.
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


def _patches(name: str, patched: integrations.Patched) -> list[str]:
    """Return a line for each function: whether it is replaced, and why not. One line if the package is missing."""
    try:
        version(name)
    except PackageNotFoundError:
        return [f"  {name} is not installed"]
    with contextlib.redirect_stdout(sys.stderr):  # packages print when they are imported
        reason = patching.import_failure(name) or patched.mismatch()
    return [*([f"  {reason}"] if reason else []), *(f"  {p.target}: {_state(p, reason)}" for p in patched.patches)]


def _state(patch: patching.Patch, reason: str | None) -> str:
    if patch.is_installed():
        return "replaced" if reason is None else "replaced by an error, for ADOPT"
    why = "this version does not need it" if patch.unneeded() else patch.mismatch()
    return f"not replaced ({why})" if why else "not replaced"


def _cpu_kernel() -> str:
    """Return where the library with the kernel is from, and why it is not from the wheel; or why there is none."""
    try:
        return library.find().origin
    except RuntimeError as error:
        return f"none: {error}"


def _cache() -> str:
    try:
        path = cache.location()
        reason = cache.why_not_trusted(path) if path.exists() else None
    except RuntimeError as error:
        reason = str(error)
    return str(path) if reason is None else f"no folder, so every process compiles them ({reason})"


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


def _runs(name: str, device: torch.device, format: Format = backends.PLAIN) -> str:
    """Return what the name means on the device, or the dtypes for which it cannot run, and why."""
    chosen: dict[str, list[str]] = {}
    for dtype in DTYPES[:-1] if not format.is_plain or device.type == "mps" else DTYPES:  # without float64
        try:
            what = backends.choose(name, device, dtype, format=format, to_use=False).words
        except RuntimeError as error:
            what = f"cannot run: {str(error).split(': ', 1)[1]}"
        chosen.setdefault(what, []).append(str(dtype).removeprefix("torch."))
    if len(chosen) == 1:
        return next(iter(chosen))
    return "; ".join(f"{what} for {', '.join(dtypes)}" for what, dtypes in chosen.items())
