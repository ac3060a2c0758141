"""Create the state of one parameter, and convert it from one format to another. A whole tensor is one segment."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf import algorithm
from adopt_hf.distributed.flat import Partition
from adopt_hf.distributed.sharding import is_dtensor, local, shard, sharding_of
from adopt_hf.state import quantization, rounding
from adopt_hf.state.formats import Format
from adopt_hf.state.quantization import Quantized

FLOATS = ("exp_avg", "exp_avg_sq")
CODES = ("exp_avg_codes", "exp_avg_sq_codes", "scales")


class Segment(NamedTuple):
    """Elements of a parameter that have their own blocks: a stretch of a flat parameter, or a whole tensor."""

    tensor: int  # number of the tensor that a stretch belongs to; 0 for a whole tensor
    start: int
    numel: int
    first_block: int
    whole: torch.Size | None = None  # the shape of a whole tensor; None for a stretch

    @property
    def shape(self) -> torch.Size:
        """The shape that determines the blocks."""
        return torch.Size([self.numel]) if self.whole is None else self.whole

    def of(self, t: Tensor) -> Tensor:
        """Return these elements of a tensor that has the parameter's shape."""
        return t.narrow(0, self.start, self.numel) if self.whole is None else t

    def scales_of(self, scales: Tensor, block_size: int) -> Tensor:
        """Return the scales of these blocks."""
        return scales.narrow(1, self.first_block, quantization.layout(self.shape, block_size).blocks)


def segments(shape: torch.Size, partition: Partition | None, block_size: int) -> Iterator[Segment]:
    """Yield the segments of a parameter of this shape: the whole tensor, or the stretches of a flat parameter."""
    if partition is None:
        yield Segment(0, 0, shape.numel(), 0, shape)
        return
    first_block = 0
    for stretch in partition.stretches:
        if stretch.numel:
            yield Segment(*stretch, first_block)
            first_block += -(-stretch.numel // block_size)


def check_scales(
    p: Tensor, state: dict[str, Any], partition: Partition | None, block_size: int, what: str = "the state"
) -> None:
    """Raise ValueError if the codes and scales of 8-bit moments do not fit `p` in blocks of this size."""
    layouts = [quantization.layout(s.shape, block_size) for s in segments(p.shape, partition, block_size)]
    blocks = (layouts[0].rows if layouts else 1, sum(layout.blocks for layout in layouts), 3)
    expected = {"exp_avg_codes": (p.shape, torch.uint8), "exp_avg_sq_codes": (p.shape, torch.uint8)}
    for name, (shape, dtype) in (expected | {"scales": (torch.Size(blocks), torch.float32)}).items():
        if state[name].shape != shape or state[name].dtype != dtype:
            raise ValueError(
                f"{what} of a parameter of shape {tuple(p.shape)} has {name} of shape {tuple(state[name].shape)} and "
                f"{state[name].dtype}; with block_size={block_size} it must be {tuple(shape)} and {dtype}"
            )


def loaded(t: Tensor, device: torch.device) -> Tensor:
    """Return a saved tensor as a writable tensor on `device`."""
    t = t.detach().to(device)
    repeated = any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True))  # by expand()
    return t.contiguous() if repeated and not is_dtensor(t) else t


def bits_of(state: dict[str, Any]) -> int:
    """Return the bits of the moments: 8, 16 or 32."""
    if "scales" in state:
        return 8
    return 16 if state["exp_avg"].dtype == torch.bfloat16 else 32


def add_zeros(p: Tensor, state: dict[str, Any], format: Format, partition: Partition | None) -> None:
    """Write the state of a new parameter, which has observed nothing, into `state`."""
    state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
    if format.bits == 8:
        here, size = local(p), format.block_size
        scales = [quantization.new_scales(s.shape, size, here.device) for s in segments(here.shape, partition, size)]
        _write(p, state, CODES, (*_no_codes(here), _joined(scales, here)))
        return
    dtype = torch.bfloat16 if format.bits == 16 else algorithm.state_dtype(p.dtype)
    for name in FLOATS:
        state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)


def convert(
    p: Tensor,
    state: dict[str, Any],
    format: Format,
    partition: Partition | None,
    group: Mapping[str, Any],
    number: int,
    block_size: int | None = None,
) -> None:
    """Convert a state, in place, to another format.

    Args:
        p: The parameter.
        state: Its state.
        format: The format that its group asks for.
        partition: The partition of a flat parameter, or None for a whole tensor.
        group: Its param group.
        number: Its number among all parameters, from which the random bits of the rounding are made.
        block_size: The block size of the codes in `state`. Default: that of `format`.
    """
    block_size = block_size or format.block_size
    dtype = algorithm.state_dtype(p.dtype)
    if bits_of(state) == 32 and format.bits == 32:
        for name in FLOATS:  # for a model that was cast after its first step
            state[name] = state[name].to(dtype)
        return
    m, v = as_floats(state, partition, block_size)
    key = rounding.key((rounding.seed_of(group), number, *shard(sharding_of(p)), int(state["step"])))
    for name in (*FLOATS, *CODES):
        state.pop(name, None)
    if format.bits == 8:
        _write(p, state, CODES, _quantized(m, v, partition, format.block_size, key))
        return
    if format.bits == 16:
        random = rounding.random_bits(key, m.numel(), m.device)[0].view(m.shape)
        m, v = rounding.to_bfloat16(m, random), rounding.to_bfloat16(v, random >> 16, above_zero=True)
    else:
        m, v = m.to(dtype), v.to(dtype)
    _write(p, state, FLOATS, (m, v))


def _write(p: Tensor, state: dict[str, Any], names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Write local tensors into a state, as shards of DTensors if `p` is one."""
    state.update(zip(names, (_sharded_like(p, t) for t in tensors), strict=True))


def as_floats(state: dict[str, Any], partition: Partition | None, block_size: int) -> tuple[Tensor, Tensor]:
    """Return the local m and v, in float32 or float64."""
    if bits_of(state) != 8:
        m, v = (local(state[name]) for name in FLOATS)
        return (m.float(), v.float()) if m.dtype == torch.bfloat16 else (m, v)
    m, v, scales = (local(state[name]) for name in CODES)
    floats = tuple(torch.zeros(m.shape, dtype=torch.float32, device=m.device) for _ in range(2))
    for s in segments(m.shape, partition, block_size):
        codes = Quantized(s.of(m), s.of(v), s.scales_of(scales, block_size))
        for t, part in zip(floats, quantization.dequantize(codes, block_size), strict=True):
            s.of(t).copy_(part)
    return floats[0], floats[1]


def _quantized(m: Tensor, v: Tensor, partition: Partition | None, block_size: int, key: int) -> Quantized:
    m_codes, v_codes = _no_codes(m)
    scales = []
    for s in segments(m.shape, partition, block_size):
        new = quantization.quantize(s.of(m).float(), s.of(v).float(), block_size, key + s.tensor)
        s.of(m_codes).copy_(new.exp_avg)
        s.of(v_codes).copy_(new.exp_avg_sq)
        scales.append(new.scales)
    return Quantized(m_codes, v_codes, _joined(scales, m))


def _no_codes(like: Tensor) -> tuple[Tensor, Tensor]:
    m, v = (torch.zeros(like.shape, dtype=torch.uint8, device=like.device) for _ in range(2))
    return m, v


def _joined(scales: list[Tensor], like: Tensor) -> Tensor:
    """Return the scales of all segments. A process may have no segment."""
    return torch.cat(scales, dim=1) if scales else torch.zeros(1, 0, 3, dtype=torch.float32, device=like.device)


def _sharded_like(p: Tensor, there: Tensor) -> Tensor:
    """Return a local shard as a DTensor if `p` is one. Its first dimension is that of `p`."""
    if not is_dtensor(p):
        return there
    from torch.distributed.tensor import DTensor

    assert isinstance(p, DTensor)
    shape = torch.Size([p.shape[0] if p.dim() else 1, *there.shape[1:]]) if there.dim() else there.shape
    if there.shape == p.to_local().shape:
        shape = p.shape
    stride = torch.empty(shape, dtype=there.dtype, device="meta").stride()
    return DTensor.from_local(there, p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride)
