"""The update on a CPU in one pass over memory. It calls `kernel.c` through ctypes, which releases the GIL."""

import ctypes
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from adopt_hf.algorithm import state_dtype
from adopt_hf.backends.bucket import Bucket, RoundedBucket
from adopt_hf.backends.cpu import library
from adopt_hf.backends.cpu.call import TYPES, Row, Scalars
from adopt_hf.backends.dense import Columns, are_same, dense, written
from adopt_hf.state.quantization import layout


@cache
def _library() -> ctypes.CDLL | RuntimeError:
    """Return the library with the kernel, or the error that explains its absence. Tried once per process."""
    try:
        return library.find().library
    except RuntimeError as error:
        return error


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why `step` cannot update parameters of `dtype` on `device`, or None if it can. Compile the kernel."""
    if device.type != "cpu":
        return f"the CPU kernel takes no {device.type} tensors"
    if dtype not in TYPES:
        return f"the CPU kernel takes parameters of {', '.join(map(str, TYPES))}"
    found = _library()
    return str(found) if isinstance(found, RuntimeError) else None


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

    row: Row
    table: "array[int]"  # the row points to it
    grads: list[Tensor]  # the table points to them; empty if kept for the next step


def _prepared(bucket: Bucket | RoundedBucket) -> _Prepared | None:
    """Return the bucket as prepared in an earlier step, with the numbers and gradients of this step."""
    memory = bucket.memory
    if memory is None or memory.prepared is None or memory.grad_addresses is None:
        return None
    prepared: _Prepared = memory.prepared
    prepared.table[1 :: prepared.row.row_length] = array("q", memory.grad_addresses)
    prepared.row.scalars = Scalars(*bucket.scalars)
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
    prepared = _Prepared(Row(len(p), table.buffer_info()[0], *numbers, Scalars(*bucket.scalars)), table, g)
    if bucket.memory is not None and are_same((p, g, m, v), bucket[:4]):
        bucket.memory.prepared = prepared._replace(grads=[])
    return prepared


def _run(rows: list[Row]) -> None:
    found = _library()
    if isinstance(found, RuntimeError):
        raise found
    first = rows[0] if len(rows) == 1 else (Row * len(rows))(*rows)
    found.adopt_step(first, len(rows), torch.get_num_threads())
