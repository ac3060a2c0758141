"""One case: a shape, a dtype and a number of threads, and the steps of all optimizers over it."""

import gc
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.harness.fresh import one_line
from experiments.step import clock, cuda, temporaries
from experiments.step.groups import groups
from experiments.step.peers import BASELINE, OURS, PEERS
from experiments.step.rounds import Round, Times, interleave, quartiles, ratio, summary
from experiments.step.shapes import SHAPES, elements
from experiments.step.stepper import DTYPES, WARMUP, Stepper, gradients, sizes_of
from experiments.step.stream import NAME as STREAM
from experiments.step.stream import Stream

Row = dict[str, Any]

PLACEMENT = 3  # rounds
HOST_ROUNDS = 10  # for each round of a case: they are short, and as many to a part in which tensors lie where they do


def head(device: str, shape: str, dtype: str, scale: float, threads: int) -> dict[str, Any]:
    """Return the description of a case before anything is measured."""
    sizes = sizes_of(shape, scale)
    total = elements(sizes)
    return {
        "device": device,
        "shape": shape,
        "dtype": dtype,
        "threads": threads,
        "tensors": len(sizes),
        "elements": total,
        # theta read and written, g read, m and v read and written in fp32
        "bytes": total * (3 * DTYPES[dtype].itemsize + 16),
        "copy_rate": None,  # bytes a second, on a GPU
        "stream": None,  # on a CPU
    }


def measure(
    device: str,
    threads: int | None,
    dtype: str,
    shape: str,
    scale: float,
    peers: list[str],
    rounds: int,
    seed: int,
    peers_path: str | None,
) -> dict[str, Any]:
    """Measure `peers`, which are installed. Each group includes the optimizers that others are compared to.

    Returns:
        The case, its `rows` by peer: times, or `why` it failed; temporaries and launches on a GPU alone.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    sizes = sizes_of(shape, scale)
    grads = gradients(sizes, dtype, device, seed)
    case = head(device, shape, dtype, scale, torch.get_num_threads())
    if device == "cuda":
        case["copy_rate"] = cuda.copy_rate()
        _release(device)
    compared_to = dict.fromkeys([BASELINE, OURS, *(PEERS[name].dense for name in peers)])  # in the same rounds
    anchors = [name for name in compared_to if name in peers]
    own = case["elements"] * (grads[0].element_size() + 8)  # parameters and moments of one peer
    own += case["elements"] * grads[0].element_size() * any(PEERS[name].unobserved for name in peers)
    shares = {"each": own, "shared": case["elements"] * grads[0].element_size() + own * (device == "cpu")}
    done: list[Round] = []
    rows: dict[str, Row] = {}
    for group in groups(peers, anchors, **shares, available=_available(device)):
        for number, share in enumerate(_shares(rounds)):
            measured, found = _measure_group(group, grads, device, share, peers_path, case, seed + number)
            done += measured
            for name, row in found.items():
                rows[name] = row if row["why"] or name not in rows else rows[name]
            _release(device)
            group = [name for name in group if not rows[name]["why"]]
    for name, row in rows.items():
        if not row["why"]:
            row.update(summary(done, name, BASELINE, OURS, STREAM))
            if (dense := PEERS[name].dense) is not None:
                row["to_dense"] = ratio(done, name, dense, "cpu_ms" if device == "cpu" else "ms")
            if case["copy_rate"]:
                row["copy_share"] = case["bytes"] / (row["ms"]["median"] / 1e3) / case["copy_rate"]
    if any(STREAM in r for r in done):
        case["stream"] = {"ms": quartiles([r[STREAM].ms for r in done if STREAM in r])}
    if device == "cpu" and SHAPES[shape].host_time:
        _host_times(rows, sizes, dtype, rounds, seed, peers_path)
    return case | {"rows": rows}


def _shares(rounds: int) -> list[int]:
    """Divide the rounds into parts, for each of which the tensors of all optimizers are made again.

    Where they come to lie in memory speeds a step up or slows it down by some per cent, for as long as they lie there.
    """
    parts = max(1, rounds // PLACEMENT)
    return [rounds * (i + 1) // parts - rounds * i // parts for i in range(parts)]


def _measure_group(
    group: list[str],
    grads: list[Tensor],
    device: str,
    rounds: int,
    peers_path: str | None,
    case: dict[str, Any],
    seed: int,
) -> tuple[list[Round], dict[str, Row]]:
    time_step = clock.of(device)
    steps: dict[str, Callable[[], Times]] = {}
    stream_first = random.Random(seed).random() < 0.5
    if device == "cpu" and stream_first:
        steps |= _stream(grads, time_step, case)
    steppers, rows = _steppers(group, grads, peers_path, seed)
    steps |= {name: partial(_timed, stepper, time_step) for name, stepper in steppers.items()}
    if device == "cpu" and not stream_first:
        steps |= _stream(grads, time_step, case)
    done, errors = interleave(steps, rounds, WARMUP, seed)
    for name, row in rows.items():
        row["why"] = row["why"] or errors.get(name, "")
        if device == "cuda" and not row["why"]:
            _count_on_cuda(row, steppers[name])
    return done, rows


def _stream(
    grads: list[Tensor], time_step: Callable[[Callable[[], None]], Times], case: dict[str, Any]
) -> dict[str, Callable[[], Times]]:
    """Return the floor, if there is a compiler for it."""
    try:
        return {STREAM: partial(time_step, Stream(grads).step)}
    except RuntimeError as error:
        case["stream"] = {"why": one_line(error)}
        return {}


def _steppers(
    names: list[str], grads: list[Tensor], peers_path: str | None, seed: int
) -> tuple[dict[str, Stepper], dict[str, Row]]:
    """Make the optimizers in a random order, because the place of a tensor depends on those made before it."""
    steppers: dict[str, Stepper] = {}
    rows: dict[str, Row] = {name: {"why": "", "notes": []} for name in names}
    for name in random.Random(seed).sample(names, len(names)):
        try:
            steppers[name] = Stepper(PEERS[name], grads, peers_path)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its row
            rows[name]["why"] = one_line(error)[:500]
    return steppers, rows


def _timed(stepper: Stepper, time_step: Callable[[Callable[[], None]], Times]) -> Times:
    stepper.give_gradients()
    return time_step(stepper.step)


def _count_on_cuda(row: Row, stepper: Stepper) -> None:
    """Count temporaries and launches. A profiler that cannot count does not make a peer fail."""
    stepper.give_gradients()
    row["temporaries_bytes"] = temporaries.on_cuda(stepper.step)
    stepper.give_gradients()
    try:
        row["launches"] = cuda.launches(stepper.step) / len(stepper.optimizer.param_groups)
    except Exception as error:  # noqa: BLE001 - the profiler needs rights and libraries of many kinds
        row["notes"].append(f"launches not counted: {one_line(error)[:200]}")


def _host_times(
    rows: dict[str, Row], sizes: list[tuple[int, ...]], dtype: str, rounds: int, seed: int, peers_path: str | None
) -> None:
    """Measure the host's work for that many tensors: a step over as many of one element each.

    It waits for memory more than it computes, so where tensors come to lie counts: in each part of the rounds
    the tensors of all are made again, in an order that is drawn.
    """
    names = [name for name, row in rows.items() if not row["why"] and not PEERS[name].compiles]
    done: list[Round] = []
    for number in range(rounds):
        grads = gradients([(1,)] * len(sizes), dtype, "cpu", seed)
        steppers, _ = _steppers(names, grads, peers_path, seed + number)
        steps = {name: partial(_timed, stepper, clock.on_cpu) for name, stepper in steppers.items()}
        part, errors = interleave(steps, HOST_ROUNDS, WARMUP, seed + number)
        done += part
        for name, error in errors.items():
            rows[name]["notes"].append(f"host time not measured: {error}")
            names.remove(name)
        del steppers, steps
        _release("cpu")
    for name in names:
        rows[name]["host_ms"] = quartiles([r[name].wall_ms for r in done if name in r])
        rows[name]["host_to_adamw"] = ratio(done, name, BASELINE, "cpu_ms")


def _available(device: str) -> int:
    """Return the bytes that are free now. On a CPU some are left to other processes."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    listed = Path("/proc/meminfo")
    if listed.exists():
        lines = listed.read_text(encoding="ascii").splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return kib * 1024 * 3 // 4
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _release(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
