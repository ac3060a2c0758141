"""Stochastic rounding and its random bits. A number is rounded up or down so that the expected result is the number.

The bits of an element are a hash of a key and of the element's place in its tensor. They need no generator and no
memory. All backends draw the same bits, and a resumed run draws the bits of the uninterrupted run. The key is made of
the seed, the tensor, its shard, and t. Each step has a new key.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
GOLDEN = 0x9E3779B9  # 2**32 divided by the golden ratio
TENSOR_KEY = "tensor_key"  # name of the key in a param group


def key(numbers: Iterable[int], mixed: int = 0) -> int:
    """Return a 32-bit key that depends on all of `numbers` and on their order.

    Args:
        numbers: Whole numbers of any size.
        mixed: The key of preceding numbers. Default: 0, for none.
    """
    for number in numbers:
        while True:
            mixed = _well_mixed((mixed + GOLDEN) ^ (number & WORD))
            number >>= 32
            if number in (0, -1):
                break
    return mixed


def seed_of(group: Mapping[str, Any]) -> int:
    """Return the seed of a param group, mixed with its `tensor_key` if it has one."""
    seed: int = group["seed"]
    return key((seed, group[TENSOR_KEY])) if TENSOR_KEY in group else seed


def random_bits(key: int, numel: int, device: torch.device | str = "cpu", start: int = 0) -> tuple[Tensor, Tensor]:
    """Return two random numbers for each of `numel` elements of a tensor, int64 in [0, 2**32).

    The numbers of an element are independent from step to step, because each step has a new key. The numbers of one
    step are spread evenly over neighbouring elements.

    Args:
        key: Key of the tensor and the step.
        numel: Number of elements.
        device: Device of the result. Default: "cpu".
        start: Place of the first element in its tensor. Default: 0.
    """
    place = torch.arange(start, start + numel, dtype=torch.int64, device=device)
    first = _mixed(place & WORD ^ key)
    return first, _mixed(first + GOLDEN & WORD)


def to_bfloat16(x: Tensor, bits: Tensor, above_zero: bool = False) -> Tensor:
    """Return `x` rounded to bfloat16 stochastically.

    Args:
        x: float32 tensor.
        bits: Random bits, int64 of the same shape. The lowest 16 are used.
        above_zero: Whether positive numbers stay positive. Default: False.
    """
    rounded = word_of(x) + (bits & 0xFFFF) & 0xFFFF0000
    if above_zero:
        rounded = torch.where((rounded == 0) & (x > 0), 0x00010000, rounded)
    # Numbers beyond the largest become infinity, as in rounding to nearest. Infinity and NaN stay unchanged.
    return torch.where(x.isfinite(), float_of(rounded), x).to(torch.bfloat16)


def _mixed(x: Tensor) -> Tensor:
    """Return a one-to-one hash of 32-bit words. A simple hash is enough, because `key` mixes the keys well."""
    x = x * 0x7FEB352D & WORD
    return x ^ x >> 15


def _well_mixed(x: int) -> int:
    """Return a one-to-one hash of a 32-bit word. A change of one bit changes about half of the result's bits."""
    x &= WORD
    x ^= x >> 16
    x = x * 0x7FEB352D & WORD
    x ^= x >> 15
    x = x * 0x846CA68B & WORD
    return x ^ x >> 16


def word_of(x: Tensor) -> Tensor:
    """Return the bits of float32 numbers, as int64 in [0, 2**32)."""
    return x.contiguous().view(torch.int32).to(torch.int64) & WORD


def float_of(word: Tensor) -> Tensor:
    """Return the float32 numbers with these bits."""
    return torch.where(word > 0x7FFFFFFF, word - (WORD + 1), word).to(torch.int32).view(torch.float32)
