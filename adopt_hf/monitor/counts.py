"""Count what the figures of a step are made of: in one tensor of one process, in pieces that bound the temporaries."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adopt_hf import algorithm
from adopt_hf.backends.reference import pieces
from adopt_hf.distributed import sharding
from adopt_hf.distributed.flat import Partition
from adopt_hf.state import conversion, quantization
from adopt_hf.state.formats import Format
from adopt_hf.state.quantization import Quantized

# What is counted of each tensor. "after": as the step leaves it, if it updates the tensor; "before": as it is else.
COLUMNS = (
    "elements",
    "clipped",
    "squared updates",
    "squared weights",
    *(f"{what} {when}" for when in ("before", "after") for what in ("v", "unobserved", "not finite")),
)


def counted(
    p: Tensor,
    grad: Tensor | None,
    state: dict[str, Any],
    group: Mapping[str, Any],
    partition: Partition | None,
    steps: Sequence[float],
    grad_scale: float,
) -> Tensor:
    """Return COLUMNS of what this process holds of each tensor of a parameter, on its device."""
    local = p.to_local() if sharding.is_dtensor(p) else p
    wide = algorithm.widest_dtype(local.device)
    table = torch.zeros(len(steps), len(COLUMNS), dtype=wide, device=local.device)
    for tensor, theta, g, m, v in _parts(p, grad, state, group, partition):
        t = steps[tensor]
        scalars = algorithm.step_scalars(group, t, grad_scale)
        table[tensor] += _counts(theta, g, m, v, scalars, wide)
    return table


def _parts(
    p: Tensor, grad: Tensor | None, state: dict[str, Any], group: Mapping[str, Any], partition: Partition | None
) -> Iterator[tuple[int, Tensor, Tensor | None, Tensor, Tensor]]:
    """Yield pieces of what this process holds of a parameter: the number of the tensor, theta, g or None, m, v."""
    if grad is not None and sharding.needs_redistribution(p, grad):
        grad = grad.redistribute(placements=p.placements)  # type: ignore[attr-defined]
    theta, g = sharding.local_real(p), None if grad is None else sharding.local_real(grad.resolve_conj())
    bits = conversion.bits_of(state) if state else 32
    block_size = group["block_size"]
    m, v, scales = (sharding.local_real(state[name]) if name in state else None for name in _names_of(bits))
    dtype = algorithm.state_dtype(theta.dtype)
    for s in conversion.segments(theta.shape, partition, block_size):
        own_scales = None if scales is None else s.scales_of(scales, block_size)
        for piece in pieces(s.shape, Format(bits, block_size, False)):
            part = piece.of(s.of(theta)).to(dtype)
            if m is None or v is None:
                moments = torch.zeros_like(part), torch.zeros_like(part)
            elif own_scales is not None:
                codes = Quantized(piece.of(s.of(m)), piece.of(s.of(v)), own_scales[piece.rows, piece.blocks])
                moments = quantization.dequantize(codes, block_size)
            else:
                moments = piece.of(s.of(m)).to(dtype), piece.of(s.of(v)).to(dtype)
            yield s.tensor, part, None if g is None else piece.of(s.of(g)).to(dtype), *moments


def _names_of(bits: int) -> tuple[str, str, str]:
    m, v, scales = conversion.CODES
    return (m, v, scales) if bits == 8 else (*conversion.FLOATS, scales)


def _counts(
    theta: Tensor, grad: Tensor | None, m: Tensor, v: Tensor, s: algorithm.StepScalars, wide: torch.dtype
) -> Tensor:
    """Return COLUMNS of one piece."""

    def of_v(v: Tensor) -> list[Tensor]:
        finite = v.isfinite()
        return [torch.where(finite, v, 0.0).sum(dtype=wide), (v == 0).sum(), (~finite).sum()]

    before = of_v(v)
    if grad is None:
        nothing = torch.zeros((), dtype=wide, device=theta.device)
        columns = [nothing, nothing, nothing, *before, *before]
    else:
        _, new_m, new_v = algorithm.update(theta, grad, m, v, s)
        size = algorithm.normalised(algorithm.gradient(theta, grad, s), v, s).abs()
        clipped = (size > s.clip) & (v != 0)
        squares = [(s.lr * new_m).square().sum(dtype=wide), theta.square().sum(dtype=wide)]
        columns = [clipped.sum(), *squares, *before, *of_v(new_v)]
    return torch.stack([torch.full((), theta.numel(), dtype=wide, device=theta.device), *(c.to(wide) for c in columns)])
