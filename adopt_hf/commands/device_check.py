"""Run every backend on every device and time it, for `python -m adopt_hf env --check`. The text is for bug reports."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer

from adopt_hf import backends
from adopt_hf.backends import selfcheck
from adopt_hf.backends.problem import Kind
from adopt_hf.optimizer import ADOPT
from adopt_hf.state.formats import Format

STEPS = 3
SHAPES = ((), (7,), (33, 129), (64, 100), (5000,))
# For each form the dtype of the parameters, the options, and the difference that other roundings may make.
FORMS: dict[str, tuple[torch.dtype, dict[str, Any], float]] = {
    "float32": (torch.float32, {}, 1e-5),
    "bfloat16": (torch.bfloat16, {}, 2**-6),
    "float32, 8 bits": (torch.float32, {"state_bits": 8}, 1e-3),
}
DECAYED: dict[str, Any] = {"weight_decay": 0.1, "decouple": True}
SECONDS = 15.0  # of timing for each device
GPT2 = (  # 124M
    *((50257, 768), (1024, 768)),
    *12
    * (
        *((768,), (768,), (768, 2304), (2304,), (768, 768), (768,)),
        *((768,), (768,), (768, 3072), (3072,), (3072, 768), (768,)),
    ),
    *((768,), (768,)),
)


def check(devices: Sequence[torch.device]) -> tuple[list[str], bool]:
    """Do some steps with every backend on every device, and check the Triton kernel again on NVIDIA GPUs.

    Returns:
        The lines of a report, and whether everything passed.
    """
    lines: list[str] = []
    right = True
    for device in devices:
        lines += ["", f"{device}: {STEPS} steps against the definition on the CPU"]
        for name in backends.NAMES:
            for form in FORMS:
                verdict = _verdict(device, name, form)
                right &= not verdict.startswith("FAIL")
                lines.append(f"  backend={name!r}, {form}: {verdict}")
        if device.type == "cuda" and torch.version.hip is None:
            found, passed = _selfcheck(device)
            lines += ["", f"{device}: the Triton kernel's self-check", *found]
            right &= passed
    if not any(device.type == "cuda" for device in devices):
        lines += ["", "There is no NVIDIA GPU here, so the Triton kernel is not checked."]
    return [*lines, "", "All is right." if right else "Please put all of this into a bug report."], right


def _verdict(device: torch.device, name: str, form: str) -> str:
    """Return PASS, FAIL with the difference, or why the backend does not run."""
    dtype, options, tolerance = FORMS[form]
    try:
        backends.choose(name, device, dtype, format=Format(options.get("state_bits", 32), 256, False), to_use=False)
    except RuntimeError as error:
        return f"does not run: {str(error).split(': ', 1)[1].split('. Allowed here')[0]}"
    try:
        got, wanted = _stepped(device, name, form), _stepped(torch.device("cpu"), "reference", form)
    except Exception as error:  # noqa: BLE001 - any error of a driver is a finding
        return f"FAIL {type(error).__name__}: {' '.join(str(error).split())[:500]}"
    worst = 0.0
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        difference = (a - b).abs().div(b.abs().clamp(min=1.0))
        if not bool((difference <= tolerance).all()):  # not True for NaN, either
            at = int((~(difference <= tolerance)).flatten().nonzero()[0])
            return (
                f"FAIL element {at} of a parameter of shape {SHAPES[i]}: expected {b.flatten()[at].item()!r}, "
                f"got {a.flatten()[at].item()!r}"
            )
        worst = max(worst, float(difference.max()))
    return f"PASS (largest difference {worst:.1e})"


def _stepped(device: torch.device, name: str, form: str) -> list[Tensor]:
    """Return the parameters after some steps, in float32 on the CPU."""
    dtype, options, _ = FORMS[form]
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)

    params = [Parameter(normal(shape).to(device)) for shape in SHAPES]
    optimizer = ADOPT(params, lr=0.01, backend=name, **DECAYED, **options)
    for _ in range(STEPS):
        for p in params:
            p.grad = normal(tuple(p.shape)).to(device)
        optimizer.step()
    return [p.detach().cpu().float() for p in params]


def _selfcheck(device: torch.device) -> tuple[list[str], bool]:
    """Check the kinds in common use, even if an earlier verdict exists."""
    reason = backends.TRITON.why_not(device, torch.float32)
    if reason is not None:
        return [f"  does not run: {reason}"], True
    lines: list[str] = []
    right = True
    for kind in _kinds():
        try:
            wrong = selfcheck.check(device, kind).wrong
        except RuntimeError as error:  # the device is lost
            return [*lines, f"  FAIL {error}"], False
        lines.append(f"  {kind}: {'PASS' if wrong is None else f'FAIL {wrong}'}")
        right &= wrong is None
    return lines, right


def _kinds() -> list[Kind]:
    single, half, plain = torch.float32, torch.bfloat16, Format(32, 0, False)
    kinds = [
        Kind(dtype, dtype, coupled, capturable, plain)
        for capturable in (False, True)
        for coupled in (False, True)
        for dtype in (single, half)
    ]
    kinds += [Kind(dtype, dtype, False, True, plain, clipped=False) for dtype in (single, half)]
    kinds += [Kind(single, half, False, False, plain), Kind(half, single, False, False, plain)]
    kinds += [Kind(single, single, False, False, Format(bits, 256 * (bits == 8), False)) for bits in (8, 16)]
    return kinds + [Kind(half, half, False, False, Format(bits, 256 * (bits == 8), True)) for bits in (8, 16, 32)]


def timing(device: torch.device, seconds: float = SECONDS) -> list[str]:
    """Time a step on the shapes of GPT-2 124M in float32, for about `seconds` in all."""
    makers: dict[str, Callable[[list[Parameter]], Optimizer]] = {
        **{f"ADOPT {name}": functools.partial(ADOPT, backend=name, **DECAYED) for name in ("fused", "foreach")},
        "AdamW fused": functools.partial(AdamW, fused=True),
    }
    lines = ["", f"{device}: a step on the shapes of GPT-2 124M in float32, the median"]
    for name, make in makers.items():
        try:
            lines.append(f"  {name}: {_timed(device, make, seconds / len(makers))}")
        except (RuntimeError, ValueError) as error:
            lines.append(f"  {name}: cannot run: {' '.join(str(error).split())[:300]}")
    return lines


def _timed(device: torch.device, make: Callable[[list[Parameter]], Optimizer], seconds: float) -> str:
    params = [Parameter(torch.ones(shape, dtype=torch.float32, device=device)) for shape in GPT2]
    optimizer = make(params)
    for p in params:
        p.grad = torch.full_like(p, 0.01)
    for _ in range(2):  # creates the state, and compiles
        optimizer.step()
    _wait(device)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    before, end = torch.cuda.memory_allocated(device) if cuda else 0, time.perf_counter() + seconds
    times: list[float] = []
    while not times or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        optimizer.step()
        _wait(device)
        times.append(time.perf_counter() - start)
    text = f"{1e3 * statistics.median(times):.2f} ms in {len(times)} steps"
    if cuda:
        text += f", {(torch.cuda.max_memory_allocated(device) - before) / 2**20:.0f} MiB of temporaries"
    return text


def _wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
