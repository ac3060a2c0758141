"""Stochastic rounding, to either neighbour so that the mean of many roundings is the value, and its random bits.

The bits of an element are a hash of a key and of the element's place in its tensor: they need no generator and no
memory, every backend draws the same, and a resumed run draws what the uninterrupted one would have drawn. The key is
made of the seed, the tensor (and the shard of it), and t; a new one each step.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9  # 2**32 divided by the golden ratio
TENSOR_KEY = "tensor_key"  # of a param group


def key(numbers: Iterable[int], mixed: int = 0) -> int:
    """A 32-bit key that depends on all of `numbers` (whole, of any size) and on their order.

    Args:
        mixed: The key of the numbers that come before them.
    """
    for number in numbers:
        while True:
            mixed = _well_mixed((mixed + GOLDEN) ^ (number & WORD))
            number >>= 32
            if number in (0, -1):
                break
    return mixed


def seed_of(group: Mapping[str, Any]) -> int:
    """Return the seed of a param group, mixed with the key of its only parameter if it has one (`single`)."""
    seed: int = group["seed"]
    return key((seed, group[TENSOR_KEY])) if TENSOR_KEY in group else seed


def random_bits(key: int, numel: int, device: torch.device | str = "cpu", start: int = 0) -> tuple[Tensor, Tensor]:
    """Return two numbers for each of `numel` elements of a tensor, from place `start` on, int64 in [0, 2**32).

    Those of an element are independent from step to step, with the keys. Those of a step are spread evenly over
    neighbours.
    """
    place = torch.arange(start, start + numel, dtype=torch.int64, device=device)
    first = _mixed(place & WORD ^ key)
    return first, _mixed(first + GOLDEN & WORD)


def to_bfloat16(x: Tensor, bits: Tensor, above_zero: bool = False) -> Tensor:
    """`x` (float32) rounded to bfloat16, stochastically.

    Args:
        bits: random, int64 of the same shape; the lowest 16 are used.
        above_zero: what is above zero does not become zero.
    """
    rounded = word_of(x) + (bits & 0xFFFF) & 0xFFFF0000
    if above_zero:
        rounded = torch.where((rounded == 0) & (x > 0), 0x00010000, rounded)
    # Beyond the largest number is infinity, as for rounding to nearest; infinity and NaN are themselves.
    return torch.where(x.isfinite(), float_of(rounded), x).to(torch.bfloat16)


def _mixed(x: Tensor) -> Tensor:
    """A hash of 32-bit words, one to one. It is that simple since keys are not: see `key`."""
    x = x * 0x7FEB352D & WORD
    return x ^ x >> 15


def _well_mixed(x: int) -> int:
    """A hash of a 32-bit word, one to one, that changes half of the bits when one is changed."""
    x &= WORD
    x ^= x >> 16
    x = x * 0x7FEB352D & WORD
    x ^= x >> 15
    x = x * 0x846CA68B & WORD
    return x ^ x >> 16


def word_of(x: Tensor) -> Tensor:
    """The bits of float32 numbers, as int64 in [0, 2**32)."""
    return x.contiguous().view(torch.int32).to(torch.int64) & WORD


def float_of(word: Tensor) -> Tensor:
    """The float32 numbers of these bits."""
    return torch.where(word > 0x7FFFFFFF, word - (WORD + 1), word).to(torch.int32).view(torch.float32)
