"""The costs of a step next to torch's AdamW: launches, temporaries, time on the device, and time of the host."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from adopt_hf import ADOPT
from experiments.gpu.check import Check
from experiments.gpu.problems import Make
from experiments.step import clock, cuda, temporaries
from experiments.step.shapes import GPT2_124M, GPT2_TOY, Size

MOST_TEMPORARIES = 256 * 2**20  # bytes of foreach, at any size of the model
MOST_LAUNCHES = 24  # of foreach for the tensors that one multi-tensor launch of torch takes
A_LAUNCH = 30  # tensors, at least, that torch gives to one launch of a _foreach_ operation over four lists
HOST_GOAL = 0.5  # of AdamW fused's host time, over many small tensors
ROUNDS = 10
WARMUP = 4
DECAY: dict[str, Any] = {"weight_decay": 0.1, "decouple": True}


def foreach(check: Check) -> None:
    """Launches and temporaries of foreach: no launch per tensor, and no temporary as large as the model."""
    many = 60 if check.dry else 448
    large = [(100, 40)] * 4 if check.dry else GPT2_124M.sizes()
    for dtype in (torch.float32, torch.bfloat16):
        made = _ready(lambda params: ADOPT(params, backend="foreach", **DECAY), _params(check, [(7,)] * many, dtype))
        launches, most = _launches(check, made), MOST_LAUNCHES * math.ceil(many / A_LAUNCH)
        figure = "needs a GPU" if launches is None else f"{launches} of at most {most}"
        check.say(None if launches is None else launches <= most, f"launches over {many} tensors, {dtype}", figure)
        made = _ready(lambda params: ADOPT(params, backend="foreach", **DECAY), _params(check, large, dtype))
        grown = None if check.dry else temporaries.on_cuda(made.step)
        figure = "needs a GPU" if grown is None else f"{grown / 2**20:.0f} MiB"
        check.say(None if grown is None else grown <= MOST_TEMPORARIES, f"temporaries over 124M, {dtype}", figure)


def _launches(check: Check, made: torch.optim.Optimizer) -> float | None:
    """Return the kernels of one step, or None in a dry run, which checks that torch's profiler can count."""
    if not check.dry:
        return cuda.launches(made.step)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        made.step()
    found = sum(event.count for event in profile.key_averages() if event.key.startswith("aten::_foreach_"))
    check.say(found > 0, "the profiler sees foreach's operations", found)
    return None


def host(check: Check) -> None:
    """Compare the host time of a step over many one-element tensors with AdamW fused, by ratios within rounds."""
    for many in (20,) if check.dry else (448, 2000):
        steps = {name: _ready(make, _params(check, [(1,)] * many)) for name, make in makers(torch.float32).items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(2 if check.dry else 30):
            for name, made in steps.items():
                check.synchronize()
                start = time.perf_counter()
                made.step()
                times[name].append(1e3 * (time.perf_counter() - start))
        base = times["AdamW fused"]
        for name, found in times.items():
            ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
            figure = f"{statistics.median(found):.3f} ms, {ratio:.2f} x AdamW fused"
            judged = name == "ADOPT fused" and not check.dry
            check.say(ratio <= HOST_GOAL if judged else True, f"host ms over {many} tensors, {name}", figure)


def speed(check: Check) -> None:
    """Time on the device and temporaries: GPT-2 124M's 148 tensors, a flat partition of 1B, LoRA's 448 tensors."""
    cases: dict[str, list[Size]] = {
        "GPT-2 124M": GPT2_124M.sizes(),
        "flat 1B": [(10**9,)],
        "LoRA, 448 tensors": [(16, 4096)] * 448,
    }
    for case, shapes in ({"toy": GPT2_TOY.sizes()[3:9]} if check.dry else cases).items():
        for dtype in (torch.float32, torch.bfloat16):
            medians: dict[str, float] = {}
            for name, make in makers(dtype).items():
                title = f"{case}, {dtype}, {name}"
                if check.skipped_for_time(title):
                    return
                with check.attempt(title):
                    medians[name] = _timed(check, title, make, shapes, dtype)
            if {"ADOPT fused", "AdamW fused"} <= medians.keys() and not check.dry:
                base = medians["AdamW fused"]
                ratios = ", ".join(f"{name} {ms / base:.2f}" for name, ms in medians.items())
                check.say(medians["ADOPT fused"] <= 1.1 * base, f"{case}, {dtype}: no slower than AdamW fused", ratios)


def makers(dtype: torch.dtype) -> dict[str, Make]:
    """Return the optimizers that are compared."""
    found: dict[str, Make] = {
        "ADOPT auto": lambda params: ADOPT(params, **DECAY),
        "ADOPT fused": lambda params: ADOPT(params, backend="fused", **DECAY),
        "ADOPT foreach": lambda params: ADOPT(params, backend="foreach", **DECAY),
        "ADOPT 8 bits": lambda params: ADOPT(params, state_bits=8, **DECAY),
        "AdamW fused": lambda params: torch.optim.AdamW(params, fused=True),
        "AdamW foreach": lambda params: torch.optim.AdamW(params, foreach=True),
    }
    if dtype == torch.bfloat16:
        found["ADOPT rounded stochastically"] = lambda params: ADOPT(params, bf16_stochastic_round=True, **DECAY)
    return found


def _params(check: Check, shapes: Sequence[Size], dtype: torch.dtype = torch.float32) -> list[Parameter]:
    params = [Parameter(torch.zeros(shape, dtype=dtype, device=check.device)) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def _ready(make: Make, params: list[Parameter]) -> torch.optim.Optimizer:
    """Return an optimizer whose state exists."""
    made = make(params)
    for _ in range(WARMUP):
        made.step()
    return made


def _timed(check: Check, title: str, make: Make, shapes: Sequence[Size], dtype: torch.dtype) -> float:
    """Say the medians of some steps; returns milliseconds on the device."""
    made = _ready(make, _params(check, shapes, dtype))
    if check.dry:
        check.say(True, title, "one step")
        return 0.0
    check.synchronize()
    numbers = sum(math.prod(shape) for shape in shapes)
    grown = temporaries.on_cuda(made.step) / numbers
    times = [clock.on_cuda(made.step) for _ in range(ROUNDS)]
    ms, moved = statistics.median(one.ms for one in times), sum(t.nbytes for t in _touched(made))
    rate = moved / ms / 1e6
    figures = f"{ms:.3f} ms on the device, {statistics.median(one.host_ms or 0.0 for one in times):.3f} ms of the host"
    check.say(True, title, f"{figures}, temporaries {grown:.1f} bytes a parameter, {rate:.0f} GB/s of 2p + g + 2m + 2v")
    return ms


def _touched(made: torch.optim.Optimizer) -> list[Tensor]:
    """Return the tensors that a step reads and writes at least, once for each time."""
    found: list[Tensor] = []
    for group in made.param_groups:
        for p in group["params"]:
            moments = [t for name, t in made.state[p].items() if name != "step" and isinstance(t, Tensor)]
            found += [p, p, p.grad, *moments, *moments]
    return found
