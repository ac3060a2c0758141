"""The update on a CPU in one pass over memory. It calls `kernel.c` through ctypes, which releases the GIL."""

import ctypes
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars, state_dtype
from adopt_hf.backends.bucket import Bucket, RoundedBucket
from adopt_hf.backends.cpu import compiler
from adopt_hf.backends.dense import Columns, are_same, dense, written
from adopt_hf.state.quantization import layout

SOURCE = Path(__file__).with_name("kernel.c")
TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # numbered as in kernel.c


class _Scalars(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in StepScalars._fields)


class _Bucket(ctypes.Structure):
    _fields_ = (
        ("tensors", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("row_length", "param_type", "grad_type")),
        *((name, ctypes.c_int32) for name in ("bits", "block_size", "round_param")),
        ("scalars", _Scalars),
    )


@cache
def _library() -> ctypes.CDLL | RuntimeError:
    """Return the compiled library, or the error that explains its absence. Compile at most once per process."""
    try:
        library = compiler.load(SOURCE)
    except RuntimeError as error:
        return error
    library.adopt_step.argtypes = (ctypes.POINTER(_Bucket), ctypes.c_int64, ctypes.c_int64)
    library.adopt_step.restype = None
    return library


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why `step` cannot update parameters of `dtype` on `device`, or None if it can. Compile the kernel."""
    if device.type != "cpu":
        return f"the CPU kernel takes no {device.type} tensors"
    if dtype not in TYPES:
        return f"the CPU kernel takes parameters of {', '.join(map(str, TYPES))}"
    library = _library()
    return str(library) if isinstance(library, RuntimeError) else None


def step(buckets: Sequence[Bucket] | Sequence[RoundedBucket]) -> None:
    """Update parameters and moments in place (equations (1) to (7)). Gradients are only read.

    Results of a RoundedBucket are rounded to its format. All buckets share one parallel region of
    `torch.get_num_threads()` threads.
    """
    with ExitStack() as until_then:
        kept = []  # keeps the tables that the rows point to
        for bucket in buckets:
            prepared = _prepared(bucket)
            if prepared is None:
                is_rounded = isinstance(bucket, RoundedBucket)
                columns = until_then.enter_context(dense(*bucket[:4], logically=is_rounded))
                prepared = _new(bucket, columns)
            if isinstance(bucket, RoundedBucket):
                prepared.table[7::8] = array("q", bucket.keys)
            kept.append(prepared)
        _run([prepared.row for prepared in kept])
    for bucket in buckets:
        written(bucket.params)


class _Prepared(NamedTuple):
    """A bucket in the form of the kernel's argument."""

    row: _Bucket
    table: "array[int]"  # the row points to it
    grads: list[Tensor]  # the table points to them; empty if kept for the next step


def _prepared(bucket: Bucket | RoundedBucket) -> _Prepared | None:
    """Return the bucket as prepared in an earlier step, with the numbers and gradients of this step."""
    memory = bucket.memory
    if memory is None or memory.prepared is None or memory.grad_addresses is None:
        return None
    prepared: _Prepared = memory.prepared
    prepared.table[1 :: prepared.row.row_length] = array("q", memory.grad_addresses)
    prepared.row.scalars = _Scalars(*bucket.scalars)
    return prepared


def _new(bucket: Bucket | RoundedBucket, columns: Columns) -> _Prepared:
    """Prepare a bucket. Keep it for the next step unless it points to copies of the bucket's tensors."""
    p, g, m, v = columns
    if g[0].dtype not in TYPES or (torch.float64 in (p[0].dtype, g[0].dtype) and p[0].dtype != g[0].dtype):
        g = [t.to(state_dtype(p[0].dtype)) for t in g]
    length, format = (8, bucket.format) if isinstance(bucket, RoundedBucket) else (5, (0, 0, 0))
    table = array("q", [0]) * (length * len(p))
    for column, tensors in enumerate((p, g, m, v)):
        table[column::length] = array("q", [t.data_ptr() for t in tensors])
    table[4::length] = array("q", [t.numel() for t in p])
    if isinstance(bucket, RoundedBucket):
        if bucket.scales:
            table[5::8] = array("q", [t.data_ptr() for t in bucket.scales])
        table[6::8] = array("q", [layout(t.shape, bucket.format.block_size).columns for t in bucket.params])
    numbers = (length, TYPES.index(p[0].dtype), TYPES.index(g[0].dtype), *format)
    prepared = _Prepared(_Bucket(len(p), table.buffer_info()[0], *numbers, _Scalars(*bucket.scalars)), table, g)
    if bucket.memory is not None and are_same((p, g, m, v), bucket[:4]):
        bucket.memory.prepared = prepared._replace(grads=[])
    return prepared


def _run(rows: list[_Bucket]) -> None:
    library = _library()
    if isinstance(library, RuntimeError):
        raise library
    first = rows[0] if len(rows) == 1 else (_Bucket * len(rows))(*rows)
    library.adopt_step(first, len(rows), torch.get_num_threads())
