"""The check of a library with the CPU kernel: a small step of each kind, whose results are known to the bit.

A wheel's library runs on processors that it was never tried on, and a compiler may have flags such as -ffast-math. The
numbers of the step include no subnormal ones, which a process may have told its processor to flush.
"""

import ctypes
import hashlib
import struct
from array import array
from functools import cache
from typing import NamedTuple

from adopt_hf.backends.cpu.call import Row, Scalars

KEY = 0x12345678  # of the random bits
ELEMENTS = 300  # more than a block, and no multiple of a vector
SCALARS = {"scale": 1.0, "l2": 0.125, "decay": 0.875, "eps": 0.01, "clip": 1.5, "beta1": 0.9, "beta2": 0.99, "lr": 0.01}


class Kind(NamedTuple):
    """Tensors for which the kernel has code of its own."""

    param_type: int  # the same for the gradients: see TYPES in call.py
    bits: int = 0
    block_size: int = 0
    round_param: int = 0


# The digest of the results of each kind, as the definition in algorithm.py computes them.
ANSWERS = {
    Kind(0): "efaee78308764dce",
    Kind(1): "864acf3c69907e67",
    Kind(2): "b0445de9da5bc0e4",
    Kind(3): "a5c1ff6aa2065a5c",
    Kind(0, 8, 256): "4b5a00a16721f9ac",
    Kind(1, 16, 256, 1): "5c4388afc3b1dac0",
}
NAMES = ("float32", "bfloat16", "float16", "float64")


@cache
def _random_words() -> list[int]:
    """Return numbers of 32 bits, always the same."""
    x, words = 1, []
    for _ in range(4 * ELEMENTS):
        x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
        words.append(x ^ x >> 15)
    return words


def _numbers(part: int) -> list[float]:
    """Return numbers with 8 bits of mantissa, positive and negative, from 2^-6 to 8. Each part has others."""
    words = _random_words()[part * ELEMENTS : (part + 1) * ELEMENTS]
    return [(1 - 2 * (x & 1)) * (128 + (x >> 8 & 127)) * 2.0 ** (-13 + (x >> 20) % 9) for x in words]


def _bytes(type: int, values: list[float]) -> bytes:
    if type == 1:  # the upper halves of floats
        return b"".join(struct.pack("<f", x)[2:] for x in values)
    return struct.pack(f"<{len(values)}{ {0: 'f', 2: 'e', 3: 'd'}[type] }", *values)


def tensors(kind: Kind) -> list[bytearray]:
    """Return the memory of theta, g, m, v and the scales of a kind, before the step."""
    theta, g, m, v = map(_numbers, range(4))
    g = [0.0 if i % 7 == 0 else x for i, x in enumerate(g)]
    v = [0.0 if i % 5 == 0 else x * x for i, x in enumerate(v)]
    scales: list[float] = []
    if kind.bits == 8:
        words = _random_words()[2 * ELEMENTS :]
        codes = [bytes((x % 127) | (x >> 9 & 128) for x in words[:ELEMENTS]), bytes(x % 254 for x in words[ELEMENTS:])]
        scales = [0.01, 0.001, 3.0, 0.02, 0.002, 4.0]
    else:
        type = 1 if kind.bits == 16 else 3 if kind.param_type == 3 else 0
        codes = [_bytes(type, m), _bytes(type, v)]
    return list(map(bytearray, (*(_bytes(kind.param_type, x) for x in (theta, g)), *codes, _bytes(0, scales))))


def wrong(library: ctypes.CDLL) -> list[str]:
    """Return the kinds for which a library computes other numbers than the definition."""
    return [_name(kind) for kind, answer in ANSWERS.items() if digest(stepped(library, kind)) != answer]


def stepped(library: ctypes.CDLL, kind: Kind, function: str = "adopt_step") -> list[bytearray]:
    """Return the memory after a step of the library."""
    memory = tensors(kind)
    addresses = [ctypes.addressof(ctypes.c_char.from_buffer(x)) if x else 0 for x in memory]
    row = [*addresses[:4], ELEMENTS, *((addresses[4], ELEMENTS, KEY) if kind.bits or kind.round_param else ())]
    table = array("q", row)
    types = (len(row), kind.param_type, kind.param_type, kind.bits, kind.block_size, kind.round_param)
    getattr(library, function)(Row(1, table.buffer_info()[0], *types, Scalars(*SCALARS.values())), 1, 1)
    return memory


def digest(memory: list[bytearray]) -> str:
    """Return the digest of theta, m, v and the scales."""
    return hashlib.sha256(b"".join((memory[0], *memory[2:]))).hexdigest()[:16]


def _name(kind: Kind) -> str:
    bits = f" with moments of {kind.bits} bits" if kind.bits else ""
    return f"{NAMES[kind.param_type]}{bits}"
