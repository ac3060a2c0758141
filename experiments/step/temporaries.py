"""The bytes that one step needs in addition to parameters, gradients and states."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.step.peers import PEERS
from experiments.step.stepper import WARMUP, Stepper, gradients, sizes_of

# glibc keeps small freed blocks, and a step that takes them again would not grow the process. With this, every block
# from 128 KiB on is mapped when it is taken and given back when it is freed.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
NOISE = 2**18  # bytes by which a process grows in any case


def measurable() -> bool:
    """Return whether the peak of the resident set can be read here."""
    return sys.platform.startswith("linux")


def status(field: str) -> int:
    """Return a number of bytes from /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def reset_peak() -> None:
    """Reset the peak of the resident set."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def growth(step: Callable[[], object]) -> int:
    """Return the bytes by which the resident set grew at most during `step`. It needs `ENVIRONMENT`."""
    reset_peak()
    before = status("VmRSS")
    step()
    grown = status("VmHWM") - before
    return grown if grown > NOISE else 0


def on_cpu(peer: str, shape: str, scale: float, dtype: str, threads: int, seed: int, peers_path: str | None) -> int:
    """Return the growth in the third step of a peer. Call it in a new process with `ENVIRONMENT`."""
    torch.set_num_threads(threads)
    stepper = Stepper(PEERS[peer], gradients(sizes_of(shape, scale), dtype, "cpu", seed), peers_path)
    for _ in range(WARMUP):
        stepper.give_gradients()
        stepper.step()
    stepper.give_gradients()
    return growth(stepper.step)


def on_cuda(step: Callable[[], object]) -> int:
    """Return the bytes that the allocator handed out at most during `step`, beyond those in use before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
