"""Equality of tensors to the last bit, and how far they differ."""

from typing import Any

import torch
from torch import Tensor


def equal(a: Any, b: Any) -> bool:
    """Return whether two things have the same structure, the same types and dtypes, and the same bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    """Bit for bit; two empty lists prove nothing."""
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert torch.equal(x, y)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether they are equal, the sign of a zero as well. Any NaN equals any other."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.dtype == b.dtype and bool(((a.view(whole) == b.view(whole)) | (a.isnan() & b.isnan())).all())


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Return the largest difference of two elements of one place and name."""
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)
