"""The update on a CPU in one pass over memory: `cpu.c`, called through ctypes, which lets go of the GIL meanwhile."""

import ctypes
import logging
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import torch

from adopt_hf.algorithm import StepScalars
from adopt_hf.backends import native
from adopt_hf.backends.bucket import Bucket
from adopt_hf.backends.dense import dense

logger = logging.getLogger("adopt_hf")

SOURCE = Path(__file__).with_suffix(".c")
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # numbered as in cpu.c


class _Scalars(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in StepScalars._fields)


class _Bucket(ctypes.Structure):
    _fields_ = (
        ("tensors", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("param_type", ctypes.c_int32),
        ("grad_type", ctypes.c_int32),
        ("scalars", _Scalars),
    )


@cache
def _library() -> ctypes.CDLL | RuntimeError:
    """The compiled kernel, or why there is none; tried once a process."""
    try:
        library = native.load(SOURCE)
    except RuntimeError as error:
        logger.info("ADOPT runs without its compiled CPU kernel: %s", error)
        return error
    library.adopt_step.argtypes = (ctypes.POINTER(_Bucket), ctypes.c_int64, ctypes.c_int64)
    library.adopt_step.restype = None
    return library


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why `step` cannot update parameters of `dtype` on `device`, or None if it can. Compiles the kernel, once."""
    if device.type != "cpu":
        return f"the CPU kernel takes no {device.type} tensors"
    if dtype not in TYPES:
        return f"the CPU kernel takes parameters of {', '.join(map(str, TYPES))}"
    library = _library()
    return str(library) if isinstance(library, RuntimeError) else None


def step(buckets: Sequence[Bucket]) -> None:
    """Update parameters and moments in place (equations (1) to (7)); gradients are only read.

    One parallel region for all buckets, of `torch.get_num_threads()` threads.
    """
    library = _library()
    if isinstance(library, RuntimeError):
        raise library
    rows = (_Bucket * len(buckets))()
    tables = []  # kept until the kernel has ended
    with ExitStack() as until_then:
        for row, bucket in zip(rows, buckets, strict=True):
            p, g, m, v = until_then.enter_context(dense(*bucket[:4]))
            if g[0].dtype not in TYPES or (torch.float64 in (p[0].dtype, g[0].dtype) and p[0].dtype != g[0].dtype):
                g = [t.to(m[0].dtype) for t in g]
            table = array("q", [0]) * (5 * len(p))
            for column, tensors in enumerate((p, g, m, v)):
                table[column::5] = array("q", [t.data_ptr() for t in tensors])
            table[4::5] = array("q", [t.numel() for t in p])
            tables.append((table, g))
            row.tensors, row.table = len(p), table.buffer_info()[0]
            row.param_type, row.grad_type = TYPES.index(p[0].dtype), TYPES.index(g[0].dtype)
            row.scalars = _Scalars(*bucket.scalars)
        library.adopt_step(rows, len(buckets), torch.get_num_threads())
    for bucket in buckets:  # autograd has not seen the kernel write
        for tensors in (bucket.params, bucket.exp_avgs, bucket.exp_avg_sqs):
            torch.autograd.graph.increment_version(tensors)
