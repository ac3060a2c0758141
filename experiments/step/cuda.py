"""The measurements that need a GPU: its copy rate, and the kernels of a step."""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from experiments.step import clock
from experiments.step.rounds import quartiles

COPIED = 2**30  # bytes
COPIES = 20


def copy_rate() -> float:
    """Return the bytes a second, read and written, of copying a large tensor: the median of some copies."""
    source = torch.zeros(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [clock.on_cuda(lambda: target.copy_(source)).ms for _ in range(COPIES)]
    found = quartiles(times[2:])
    assert found is not None
    return 2 * COPIED / (found["median"] / 1e3)


def launches(step: Callable[[], object]) -> int:
    """Return the number of kernels that `step` starts."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        step()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(prefix="adopt_hf_benchmark_") as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    count = kernels(events)
    if count == 0:
        raise RuntimeError("the profiler saw no kernel")
    return count


def kernels(events: Iterable[Mapping[str, Any]]) -> int:
    """Count the kernels among a trace's events. Copies, fills and annotations do not count."""
    return sum(event.get("cat") == "kernel" for event in events)
