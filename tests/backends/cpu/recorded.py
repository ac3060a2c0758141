"""Calls of the CPU kernel, with all that it reads and all that it has written: those of the golden trajectories.

`replay.c` reads the file, repeats the calls with a library on any processor, and counts those with other results.
"""

import ctypes
import struct
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from adopt_hf.backends.cpu import launch
from adopt_hf.backends.cpu.call import Row
from tests.golden.cases import CASES

SIZES = (4, 2, 2, 8)  # bytes of an element, by type
SCALARS = 8


def record(path: Path) -> int:
    """Write the calls of all trajectories of the kernel whose parameters are plain tensors. Return their number."""
    run, calls = launch._run, 0
    with path.open("wb") as file, pytest.MonkeyPatch.context() as patch:

        def recorded(rows: list[Row]) -> None:
            nonlocal calls
            calls += 1
            before = [_memory(row) for row in rows]
            run(rows)
            file.write(struct.pack("<q", len(rows)))
            for row, memory in zip(rows, before, strict=True):
                _write(file, row, memory, _memory(row))

        patch.setattr(launch, "_run", recorded)
        for case in CASES:
            if case.kind == "plain" and "fused" in case.backends:
                case.run("fused")
    return calls


def _table(row: Row) -> list[list[int]]:
    """Return the row of each tensor, with zeros where the kernel reads none."""
    length = row.row_length
    flat = (ctypes.c_int64 * (row.tensors * length)).from_address(row.table)
    return [[*flat[i : i + length], 0, 0, 0][:8] for i in range(0, len(flat), length)]


def _memory(row: Row) -> list[list[bytes]]:
    """Return theta, g, m, v and the scales of each tensor."""
    moment = row.bits // 8 if row.bits else 8 if row.param_type == 3 else 4
    sizes = (SIZES[row.param_type], SIZES[row.grad_type], moment, moment)
    found = []
    for *addresses, elements, scales, columns, _ in _table(row):
        blocks = elements // columns * -(-columns // row.block_size) if row.bits == 8 and columns else 0
        lengths = (*(size * elements for size in sizes), 12 * blocks)
        found.append([ctypes.string_at(a, n) if n else b"" for a, n in zip((*addresses, scales), lengths, strict=True)])
    return found


def _write(file: BinaryIO, row: Row, before: list[list[bytes]], after: list[list[bytes]]) -> None:
    types: Any = (row.row_length, row.param_type, row.grad_type, row.bits, row.block_size, row.round_param)
    file.write(struct.pack("<q6i", row.tensors, *types) + bytes(row.scalars))
    for (*_, elements, _, columns, key), old, new in zip(_table(row), before, after, strict=True):
        file.write(struct.pack("<8q", elements, columns, key, *map(len, old)) + b"".join((*old, *new)))
