"""The time of one step."""

import time
from collections.abc import Callable

import torch

from experiments.step.rounds import Times

Step = Callable[[], object]

# Threads of an OpenMP region spin for some milliseconds after its end and would share the cores of the next step.
PAUSE = 0.02


def on_cpu(step: Step) -> Times:
    """Measure wall time and process time."""
    time.sleep(PAUSE)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    wall, cpu = 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)
    return Times(ms=wall, wall_ms=wall, cpu_ms=cpu, host_ms=None)


def on_cuda(step: Step) -> Times:
    """Measure the time between events before and after, on an idle device, and the host's own time."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    start.record()
    step()
    end.record()
    host = time.perf_counter() - wall
    torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Times(ms=start.elapsed_time(end), wall_ms=1e3 * wall, cpu_ms=1e3 * cpu, host_ms=1e3 * host)


def of(device: str) -> Callable[[Step], Times]:
    """Return the clock of a device."""
    return on_cuda if device == "cuda" else on_cpu
