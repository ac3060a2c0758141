"""The format of moments in 8 bits per element.

At beta2 = 0.9999 v moves by one part in 10,000 per step, which rounding to nearest would lose. This format rounds v
stochastically, on a grid that the decay of v does not change:

    blocks     A tensor is cut between its rows (dimension 0), and each row into blocks of `block_size` elements. The
               last block of a row may be shorter. A tensor of one dimension or of short rows is one row. A shard of
               whole rows therefore has the blocks of the whole tensor.
    v          scale * 2**k * (1 + i / 2**bits): the numbers with `bits` bits of mantissa, in codes 1, 2, 3, ... from
               `scale` upwards. Code 0 is v = 0 (never observed), 254 is inf, 255 is NaN.
    scale      The scale of v is multiplied by beta2 in each step, so the decay of v is exact and has no noise. Only the
               addend of v is rounded. When the largest v of the block leaves the highest octave, the scale moves by a
               power of two, which changes codes and no value.
    bits       2 to 5, as many as the block's range of v allows (62, 31, 15 or 7 octaves). A v below that range is
               raised to its lower end and never becomes 0.
    m          sign * scale * (x - 1), where x is one of the numbers from 1 to 240 with 4 bits of mantissa. The grid is
               even near zero and relative beyond. A code has 7 bits and a sign, and 127 means "not finite". The scale
               follows the largest |m| of the block. m is rounded stochastically as well.

The three numbers of a block (scale of m, scale of v, bits of v) are float32. They are in `scales`, of shape (rows,
blocks of a row, 3). Both moments take 2 + 12/256 bytes per element.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.state.rounding import float_of, random_bits, word_of

BLOCK_SIZE = int(HYPERPARAMETERS["block_size"].default)
SMALLEST_TENSOR = 4096  # elements; smaller tensors keep float32 moments

ONE = 0x3F800000  # the bits of 1.0
LAST = 253  # the largest code of a finite v
INF, NAN = 254, 255
FEWEST_BITS, MOST_BITS = 2, 5
NOT_FINITE = 0x7F800000  # the bits of inf; the bits of NaN are larger
TINIEST = 2.0**-100  # lower bound of the scale of v; an |m| below it is 0
TINY = 0x0D800000  # the bits of TINIEST

M_BITS = 4
M_TOP = 223.0  # 1 + M_TOP = 224 has code 124, and may be rounded up to code 125
M_NOT_FINITE = 127


class Layout(NamedTuple):
    """The division of a tensor into blocks."""

    rows: int
    columns: int
    block_size: int

    @property
    def blocks(self) -> int:
        """The number of blocks in a row."""
        return -(-self.columns // self.block_size)

    def blocked(self, t: Tensor) -> Tensor:
        """Return the elements as (rows, blocks, block_size), with zeros at the end of shorter blocks."""
        t = t.reshape(self.rows, self.columns)
        t = F.pad(t, (0, self.blocks * self.block_size - self.columns))
        return t.view(self.rows, self.blocks, self.block_size)

    def whole(self, t: Tensor, shape: torch.Size) -> Tensor:
        """Return elements of shape (rows, blocks, block_size) in a tensor's shape."""
        return t.reshape(self.rows, self.blocks * self.block_size)[:, : self.columns].reshape(shape)


def layout(shape: torch.Size, block_size: int) -> Layout:
    """Return the layout of a tensor of this shape."""
    if has_rows(shape, block_size):
        return Layout(shape[0], shape[1:].numel(), block_size)
    return Layout(1, shape.numel(), block_size)


def has_rows(shape: torch.Size, block_size: int) -> bool:
    """Return whether blocks stay within rows, so that shards of whole rows have the blocks of the whole tensor."""
    return len(shape) > 1 and shape[1:].numel() >= block_size // 2


class Quantized(NamedTuple):
    """The codes and scales of one tensor's moments."""

    exp_avg: Tensor  # uint8, of the parameter's shape: codes
    exp_avg_sq: Tensor  # uint8, of the parameter's shape: codes
    scales: Tensor  # float32, (rows, blocks, 3)


def new_scales(shape: torch.Size, block_size: int, device: torch.device) -> Tensor:
    """Return the scales of moments that are zero. Their codes are 0: nothing was observed."""
    where = layout(shape, block_size)
    scales = torch.zeros(where.rows, where.blocks, 3, dtype=torch.float32, device=device)
    scales[..., 1], scales[..., 2] = TINIEST, FEWEST_BITS
    return scales


def dequantize(q: Quantized, block_size: int) -> tuple[Tensor, Tensor]:
    """Return (m, v) in float32."""
    where = layout(q.exp_avg.shape, block_size)
    m, v = _decode_m(where.blocked(q.exp_avg), q.scales), _decode_v(where.blocked(q.exp_avg_sq), q.scales)
    return where.whole(m, q.exp_avg.shape), where.whole(v, q.exp_avg.shape)


def quantize(exp_avg: Tensor, exp_avg_sq: Tensor, block_size: int, key: int) -> Quantized:
    """Return the codes of float32 moments on a new grid, rounded with the random bits of `key`."""
    scales = new_scales(exp_avg.shape, block_size, exp_avg.device)
    return encode(exp_avg, exp_avg_sq, scales, 1.0, block_size, random_bits(key, exp_avg.numel(), exp_avg.device)[0])


def are_scales(scales: Tensor) -> Tensor:
    """Return for each block whether its three numbers are possible."""
    m, v, bits = scales.unbind(-1)
    largest_v = torch.exp2(129.0 - (LAST - 2) // 2 ** bits.clamp(FEWEST_BITS, MOST_BITS))
    return (
        ((m >= 0) & (m <= torch.finfo(torch.float32).max / M_TOP))
        & ((v >= TINIEST) & (v < largest_v))
        & ((bits >= FEWEST_BITS) & (bits <= MOST_BITS) & (bits == bits.round()))
    )


def encode(
    exp_avg: Tensor,  # m, float32
    exp_avg_sq: Tensor,  # v, of the same shape, float32
    scales: Tensor,  # scales of the moments before the step
    beta2: float,  # factor by which v has decayed in the step
    block_size: int,
    random: Tensor,  # int64 in [0, 2**32), one per element; v uses the upper bits, m the lower 11
) -> Quantized:
    """Return the codes and scales of the moments after a step."""
    where = layout(exp_avg.shape, block_size)
    random, v = where.blocked(random), where.blocked(exp_avg_sq)
    scale, bits = _grid(v, scales[..., 1] * beta2, scales[..., 2])
    v_codes = _encode_v(v, scale, bits, random)
    m_codes, m_scale = _encode_m(where.blocked(exp_avg), random)
    return Quantized(
        where.whole(m_codes, exp_avg.shape),
        where.whole(v_codes, exp_avg.shape),
        torch.stack((m_scale, scale, bits), dim=-1),
    )


def _decode_v(codes: Tensor, scales: Tensor) -> Tensor:
    q, shift = codes.long(), 23 - scales[..., 2:].long()
    v = float_of(ONE + (q - 1).clamp(min=0) * (1 << shift)) * scales[..., 1:2]
    v = torch.where(q == 0, 0.0, v)
    return torch.where(q == INF, torch.inf, torch.where(q == NAN, torch.nan, v))


def _grid(v: Tensor, scale: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale, moved by a power of two, and the bits of mantissa, as the new v of each block require."""
    word = word_of(v)
    word = torch.where(word >= NOT_FINITE, 0, word)  # inf and NaN have their own codes
    high = word.amax(-1) >> 23
    low = torch.where(word == 0, NOT_FINITE, word).amin(-1) >> 23
    octaves = high - low + 2  # one more octave, because `scale` lies within an octave
    chosen = torch.full_like(high, FEWEST_BITS)
    for more in range(FEWEST_BITS + 1, MOST_BITS + 1):
        spare = (more > bits).long()  # keeps the grid if the range wavers
        chosen = torch.where(octaves + spare <= (LAST - 2) >> more, more, chosen)
    old = word_of(scale)
    moved = old + (high + 1 - (LAST - 2 >> chosen) - (old >> 23) << 23)
    return float_of(torch.where(high > 0, moved, old).clamp(min=TINY)), chosen.float()


def _encode_v(v: Tensor, scale: Tensor, bits: Tensor, random: Tensor) -> Tensor:
    shift = 23 - bits[..., None].long()
    over_scale = (v * (1 / scale)[..., None]).clamp(min=1.0)
    q = (word_of(over_scale) - ONE + (random >> (32 - shift)) >> shift) + 1
    q = torch.where(v == 0, 0, q)
    q = torch.where(v == torch.inf, INF, q)
    return torch.where(v.isnan(), NAN, q).to(torch.uint8)


def _decode_m(codes: Tensor, scales: Tensor) -> Tensor:
    q = codes.long() & 0x7F
    size = (float_of(ONE + (q << (23 - M_BITS))) - 1.0) * scales[..., :1]
    size = torch.where(q == M_NOT_FINITE, torch.nan, size)
    return torch.where(codes > 0x7F, -size, size)


def _encode_m(m: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of m, and the scale of each block."""
    size = m.abs()
    finite = size < torch.inf  # False for NaN
    largest = torch.where(finite, size, 0.0).amax(-1)
    some = largest >= TINIEST
    inverse = torch.where(some, M_TOP / largest, 0.0)
    shift = 23 - M_BITS
    word = word_of(1.0 + torch.where(finite, size, 0.0) * inverse[..., None])
    q = word - ONE + ((random & 0x7FF) << (shift - 11)) >> shift
    codes = torch.where(finite, q + 0x80 * m.signbit(), M_NOT_FINITE)  # a NaN has an arbitrary sign
    return codes.to(torch.uint8), torch.where(some, largest * (1 / M_TOP), 0.0)
