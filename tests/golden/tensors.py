"""Parameters and gradients made by integer arithmetic, and digests of tensors: the same on every machine."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

WORD = 0xFFFFFFFF
EXPONENTS = torch.tensor([2.0**e for e in range(-8, 5)], dtype=torch.float64)
SHOWN = 2  # elements of a tensor that stand in a golden file as numbers


def values(seed: int, shape: Sequence[int], dtype: torch.dtype = torch.float32, wide: bool = False) -> Tensor:
    """Return numbers in (-1, 1), multiples of 1/128, which bfloat16 represents exactly.

    Args:
        seed: A whole number; each one gives other numbers.
        wide: Whether each number is multiplied by a power of two from 2**-8 to 2**4.
    """
    if dtype.is_complex:
        return torch.view_as_complex(values(seed, (*shape, 2), dtype.to_real(), wide))
    numel = torch.Size(shape).numel()
    x = torch.arange(numel, dtype=torch.int64) * 0x9E3779B1 + seed * 0x85EBCA6B & WORD
    for multiplier in (0x7FEB352D, 0x846CA68B):
        x = (x ^ x >> 15) * multiplier & WORD
    x = x ^ x >> 16
    result = ((x & 0xFF) - 128).double() / 128
    if wide:
        result = result * EXPONENTS[(x >> 8) % len(EXPONENTS)]
    return result.to(dtype).reshape(torch.Size(shape))


def digest(tensors: Mapping[str, Any]) -> str:
    """Return a SHA-256 of names, dtypes, shapes and elements, its first 16 digits. All NaNs count as the same."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            found.update(f"{name} {value!r}\n".encode())
            continue
        local = plain(value)
        found.update(f"{name} {local.dtype} {tuple(local.shape)}\n".encode())
        found.update(local.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def first_numbers(tensor: Tensor) -> str:
    """Return the first elements of a tensor, for a reader of a golden file and of a failure."""
    flat = torch.view_as_real(plain(tensor)) if tensor.is_complex() else plain(tensor)
    return " ".join(f"{x:.9g}" for x in flat.reshape(-1)[:SHOWN].tolist())


def plain(tensor: Tensor) -> Tensor:
    """Return the local elements of a tensor, contiguous on the CPU, with one bit pattern for NaN."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    local = local.detach().cpu().resolve_conj().contiguous()
    return torch.where(local.isnan(), torch.full_like(local, torch.nan), local) if local.is_floating_point() else local
