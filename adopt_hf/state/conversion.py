"""The state of one parameter: made, and brought from one form of storage into another."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf import algorithm
from adopt_hf.distributed.flat import Partition
from adopt_hf.distributed.sharding import is_dtensor
from adopt_hf.state import quantization
from adopt_hf.state.formats import Storage
from adopt_hf.state.quantization import Quantized
from adopt_hf.state.rounding import random_bits, to_bfloat16

FLOATS = ("exp_avg", "exp_avg_sq")
CODES = ("exp_avg_codes", "exp_avg_sq_codes", "scales")


class Piece(NamedTuple):
    """A part of a tensor that has blocks of its own: all of it, or a stretch of a flat parameter."""

    tensor: int  # of the stretch; 0
    start: int
    numel: int
    first_block: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.narrow(0, self.start, self.numel)

    def scales_of(self, scales: Tensor, block_size: int) -> Tensor:
        return scales.narrow(1, self.first_block, -(-self.numel // block_size))


def pieces(partition: Partition, block_size: int) -> Iterator[Piece]:
    """The stretches of a flat parameter, each with its blocks: tensors may differ in their step counts."""
    first_block = 0
    for stretch in partition.stretches:
        if stretch.numel:
            yield Piece(*stretch, first_block)
            first_block += -(-stretch.numel // block_size)


def check_scales(
    p: Tensor, state: dict[str, Any], partition: Partition | None, block_size: int, what: str = "the state"
) -> None:
    """Raise ValueError if the codes and scales of 8-bit moments are not those of `p` in blocks of this size."""
    if partition is None:
        where = quantization.layout(p.shape, block_size)
        blocks = (where.rows, where.blocks, 3)
    else:
        blocks = (1, sum(-(-piece.numel // block_size) for piece in pieces(partition, block_size)), 3)
    expected = {"exp_avg_codes": (p.shape, torch.uint8), "exp_avg_sq_codes": (p.shape, torch.uint8)}
    for name, (shape, dtype) in (expected | {"scales": (torch.Size(blocks), torch.float32)}).items():
        if state[name].shape != shape or state[name].dtype != dtype:
            raise ValueError(
                f"{what} of a parameter of shape {tuple(p.shape)} has {name} of shape {tuple(state[name].shape)} and "
                f"{state[name].dtype}; with block_size={block_size} it must be {tuple(shape)} and {dtype}"
            )


def loaded(t: Tensor, device: torch.device) -> Tensor:
    """Return a saved tensor as one that can be written to, on `device`."""
    t = t.detach().to(device)
    repeated = any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True))  # by expand()
    return t.contiguous() if repeated and not is_dtensor(t) else t


def bits_of(state: dict[str, Any]) -> int:
    """In how many bits the moments are."""
    if "scales" in state:
        return 8
    return 16 if state["exp_avg"].dtype == torch.bfloat16 else 32


def add_zeros(p: Tensor, state: dict[str, Any], storage: Storage, partition: Partition | None) -> None:
    """Give a parameter its state, in which nothing has been observed."""
    state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
    if storage.bits == 8:
        local = p.to_local() if is_dtensor(p) else p
        if partition is None:
            zeros = quantization.zeros(local.shape, storage.block_size, local.device)
        else:
            scales = [
                quantization.zeros(torch.Size([piece.numel]), storage.block_size, local.device).scales
                for piece in pieces(partition, storage.block_size)
            ]
            m, v = (torch.zeros(local.shape, dtype=torch.uint8, device=local.device) for _ in range(2))
            zeros = Quantized(m, v, torch.cat([_no_blocks(local), *scales], dim=1))
        state.update(zip(CODES, (_sharded_like(p, t) for t in zeros), strict=True))
        return
    dtype = torch.bfloat16 if storage.bits == 16 else algorithm.state_dtype(p.dtype)
    for name in FLOATS:
        state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)


def bring_into_form(
    p: Tensor,
    state: dict[str, Any],
    storage: Storage,
    partition: Partition | None,
    key: int,
    block_size: int | None = None,
) -> None:
    """Bring a state, in place, into the form that `storage` asks for.

    Args:
        key: of the random bits that rounding takes.
        block_size: of the codes that there are; None: as `storage` has it.
    """
    block_size = block_size or storage.block_size
    dtype = algorithm.state_dtype(p.dtype)
    if bits_of(state) == 32 and storage.bits == 32:
        for name in FLOATS:  # the model was cast after its first step
            state[name] = state[name].to(dtype)
        return
    m, v = _as_floats(state, partition, block_size)
    for name in (*FLOATS, *CODES):
        state.pop(name, None)
    if storage.bits == 8:
        new = _quantized(m, v, partition, storage.block_size, key)
        state.update(zip(CODES, (_sharded_like(p, t) for t in new), strict=True))
        return
    if storage.bits == 16:
        random = random_bits(key, m.numel(), m.device)[0].view(m.shape)
        m, v = to_bfloat16(m, random), to_bfloat16(v, random >> 16, above_zero=True)
    else:
        m, v = m.to(dtype), v.to(dtype)
    state.update(zip(FLOATS, (_sharded_like(p, t) for t in (m, v)), strict=True))


def _as_floats(state: dict[str, Any], partition: Partition | None, block_size: int) -> tuple[Tensor, Tensor]:
    """The local m and v, in float32 or more."""
    if bits_of(state) != 8:
        m, v = (_local(state[name]) for name in FLOATS)
        return (m.float(), v.float()) if m.dtype == torch.bfloat16 else (m, v)
    m, v, scales = (_local(state[name]) for name in CODES)
    if partition is None:
        return quantization.dequantize(Quantized(m, v, scales), block_size)
    whole = tuple(torch.zeros(m.shape, dtype=torch.float32, device=m.device) for _ in range(2))
    for piece in pieces(partition, block_size):
        codes = Quantized(piece.of(m), piece.of(v), piece.scales_of(scales, block_size))
        for flat, part in zip(whole, quantization.dequantize(codes, block_size), strict=True):
            piece.of(flat).copy_(part)
    return whole[0], whole[1]


def _quantized(m: Tensor, v: Tensor, partition: Partition | None, block_size: int, key: int) -> Quantized:
    if partition is None:
        return quantization.quantize(m.float(), v.float(), block_size, key)
    m_codes, v_codes = (torch.zeros(m.shape, dtype=torch.uint8, device=m.device) for _ in range(2))
    scales = [_no_blocks(m)]
    for piece in pieces(partition, block_size):
        new = quantization.quantize(piece.of(m).float(), piece.of(v).float(), block_size, key + piece.tensor)
        piece.of(m_codes).copy_(new.exp_avg)
        piece.of(v_codes).copy_(new.exp_avg_sq)
        scales.append(new.scales)
    return Quantized(m_codes, v_codes, torch.cat(scales, dim=1))


def _no_blocks(like: Tensor) -> Tensor:
    return torch.zeros(1, 0, 3, dtype=torch.float32, device=like.device)


def _local(t: Tensor) -> Tensor:
    return t.to_local() if is_dtensor(t) else t


def _sharded_like(p: Tensor, local: Tensor) -> Tensor:
    """A shard as a DTensor of the whole tensor, if `p` is one; the first dimension is that of `p`."""
    if not is_dtensor(p):
        return local
    from torch.distributed.tensor import DTensor

    assert isinstance(p, DTensor)
    shape = torch.Size([p.shape[0] if p.dim() else 1, *local.shape[1:]]) if local.dim() else local.shape
    if local.shape == p.to_local().shape:
        shape = p.shape
    stride = torch.empty(shape, dtype=local.dtype, device="meta").stride()
    return DTensor.from_local(local, p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride)
