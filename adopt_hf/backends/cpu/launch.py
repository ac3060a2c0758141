"""The update on a CPU in one pass over memory: `kernel.c`, called through ctypes, which lets go of the GIL."""

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
    """The compiled kernel, or why there is none; tried once a process."""
    try:
        library = compiler.load(SOURCE)
    except RuntimeError as error:
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
    with ExitStack() as until_then:
        kept = []  # so that what the rows point to lives until then
        for bucket in buckets:
            prepared = _prepared(bucket)
            if prepared is None:
                columns = until_then.enter_context(dense(*bucket[:4]))
                table, grad_type, grads = _table(columns, 5)
                row = _row(bucket.params, table, 5, grad_type, bucket.scalars)
                prepared = _Prepared(row, table, grads)
                _remember(bucket, columns, prepared)
            kept.append(prepared)
        _run([prepared.row for prepared in kept])
    for bucket in buckets:
        written(bucket.params)


def step_rounded(buckets: Sequence[RoundedBucket]) -> None:
    """The same with results that are rounded as the format of the bucket says."""
    with ExitStack() as until_then:
        kept = []
        for bucket in buckets:
            prepared = _prepared(bucket)
            if prepared is None:
                columns = until_then.enter_context(dense(*bucket[:4], logically=True))
                table, grad_type, grads = _table(columns, 8)
                bits, block_size, round_param = bucket.format
                if bucket.scales:
                    table[5::8] = array("q", [t.data_ptr() for t in bucket.scales])
                table[6::8] = array("q", [layout(t.shape, block_size).columns for t in bucket.params])
                row = _row(bucket.params, table, 8, grad_type, bucket.scalars, bits, block_size, round_param)
                prepared = _Prepared(row, table, grads)
                _remember(bucket, columns, prepared)
            prepared.table[7::8] = array("q", bucket.keys)
            kept.append(prepared)
        _run([prepared.row for prepared in kept])
    for bucket in buckets:
        written(bucket.params)


class _Prepared(NamedTuple):
    """A bucket as the kernel takes it."""

    row: _Bucket
    table: "array[int]"  # which the row points to
    grads: list[Tensor]  # which the table points to; none in what is kept for the next step


def _prepared(bucket: Bucket | RoundedBucket) -> _Prepared | None:
    """Return what was prepared in an earlier step, with the numbers and gradients of this one."""
    memory = bucket.memory
    if memory is None or memory.prepared is None or memory.grad_addresses is None:
        return None
    prepared: _Prepared = memory.prepared
    prepared.table[1 :: prepared.row.row_length] = array("q", memory.grad_addresses)
    prepared.row.scalars = _Scalars(*bucket.scalars)
    return prepared


def _remember(bucket: Bucket | RoundedBucket, columns: Columns, prepared: _Prepared) -> None:
    """Keep what was prepared for the next step, if it points to the bucket's tensors themselves."""
    p, _, m, v = columns
    if bucket.memory is not None and are_same((p, prepared.grads, m, v), bucket[:4]):
        bucket.memory.prepared = prepared._replace(grads=[])


def _table(columns: Columns, row_length: int) -> tuple["array[int]", int, list[Tensor]]:
    """The rows of the kernel's table, with the first five numbers; the type of the gradients, and those."""
    p, g, m, v = columns
    if g[0].dtype not in TYPES or (torch.float64 in (p[0].dtype, g[0].dtype) and p[0].dtype != g[0].dtype):
        g = [t.to(state_dtype(p[0].dtype)) for t in g]
    table = array("q", [0]) * (row_length * len(p))
    for column, tensors in enumerate((p, g, m, v)):
        table[column::row_length] = array("q", [t.data_ptr() for t in tensors])
    table[4::row_length] = array("q", [t.numel() for t in p])
    return table, TYPES.index(g[0].dtype), g


def _row(
    params: list[Tensor],
    table: "array[int]",
    row_length: int,
    grad_type: int,
    scalars: StepScalars,
    *format: int,
) -> _Bucket:
    param_type, address = TYPES.index(params[0].dtype), table.buffer_info()[0]
    numbers = (row_length, param_type, grad_type, *(format or (0, 0, 0)))
    return _Bucket(len(params), address, *numbers, _Scalars(*scalars))


def _run(rows: list[_Bucket]) -> None:
    library = _library()
    if isinstance(library, RuntimeError):
        raise library
    first = rows[0] if len(rows) == 1 else (_Bucket * len(rows))(*rows)
    library.adopt_step(first, len(rows), torch.get_num_threads())
