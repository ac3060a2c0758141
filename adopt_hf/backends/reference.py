"""The definition, tensor by tensor: slow, and correct by inspection. `torch.compile` fuses it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars, capturable_scalars, update
from adopt_hf.backends.bucket import Bucket, CapturableBucket, RoundedBucket
from adopt_hf.state import quantization
from adopt_hf.state.formats import Format
from adopt_hf.state.quantization import Quantized
from adopt_hf.state.rounding import random_bits, to_bfloat16

PIECE = 2**19  # elements, padding of blocks included; a multiple of every block size


class Piece(NamedTuple):
    """A stretch of a tensor's elements, in the order of their indices."""

    start: int
    end: int
    shape: tuple[int, ...]  # shape in which `quantization` finds the blocks of the whole tensor
    rows: slice = slice(None)  # of the scales
    blocks: slice = slice(None)

    def of(self, t: Tensor) -> Tensor:
        """Return these elements of a tensor, as a view if possible."""
        parts = [part.reshape(-1) for part in _views(t, self.start, self.end)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(self.shape)

    def write(self, t: Tensor, new: Tensor) -> None:
        """Write `new` to these elements of a tensor."""
        new = new.reshape(-1)
        for part in _views(t, self.start, self.end):
            part.copy_(new[: part.numel()].view(part.shape))
            new = new[part.numel() :]


def pieces(shape: torch.Size, format: Format) -> Iterator[Piece]:
    """Yield the pieces of a tensor of this shape. 8-bit moments are cut between blocks."""
    numel, size = shape.numel(), format.block_size
    if format.bits != 8:
        for start in range(0, numel, PIECE):
            yield Piece(start, min(start + PIECE, numel), (min(PIECE, numel - start),))
        return
    where = quantization.layout(shape, size)
    columns, together = where.columns, PIECE // (where.blocks * size) if numel else 1
    if numel and together == 0:  # a row is larger than a piece
        for row in range(where.rows):
            for start in range(0, columns, PIECE):
                count, first = min(PIECE, columns - start), row * columns + start
                blocks = slice(start // size, -(-(start + count) // size))
                yield Piece(first, first + count, (count,), slice(row, row + 1), blocks)
        return
    for row in range(0, where.rows if numel else 0, together):
        rows = min(together, where.rows - row)
        one = (columns,) if where.rows == 1 else (rows, columns)
        yield Piece(row * columns, (row + rows) * columns, one, slice(row, row + rows))


def _views(t: Tensor, start: int, end: int) -> Iterator[Tensor]:
    """Yield successive views that contain the elements `start` to `end` of a tensor."""
    if t.is_contiguous():
        yield t.view(-1)[start:end]
        return
    if t.dim() == 1:
        yield t[start:end]
        return
    inner = t[0].numel()
    first, last = start // inner, end // inner
    if first == last:
        yield from _views(t[first], start - first * inner, end - first * inner)
        return
    if start > first * inner:
        yield from _views(t[first], start - first * inner, inner)
        first += 1
    if first < last:
        yield t[first:last]
    if end > last * inner:
        yield from _views(t[last], 0, end - last * inner)


def step(buckets: Sequence[Bucket]) -> None:
    """Update parameters and moments in place (equations (1) to (7)). Gradients are only read."""
    for params, grads, exp_avgs, exp_avg_sqs, scalars, _ in buckets:
        for param, grad, exp_avg, exp_avg_sq in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
            theta, m, v = update(param, grad, exp_avg, exp_avg_sq, scalars)
            param.copy_(theta)
            exp_avg.copy_(m)
            exp_avg_sq.copy_(v)


def step_capturable(buckets: Sequence[CapturableBucket]) -> None:
    """Update buckets with equation (8), decided per tensor on the device. `steps` are counted in place."""
    for params, grads, exp_avgs, exp_avg_sqs, steps, group, grad_scale, found_inf, agree, _ in buckets:
        observed = torch.stack([g.ne(0).any() for g in grads]).int()
        if agree is not None:
            agree(observed)
        for i, t in enumerate(steps):
            go = (observed[i] > 0) | (t > 0)  # (8)
            if found_inf is not None:
                go &= found_inf.reshape(()) == 0
            updated = update(params[i], grads[i], exp_avgs[i], exp_avg_sqs[i], capturable_scalars(group, t, grad_scale))
            for old, new in zip((params[i], exp_avgs[i], exp_avg_sqs[i]), updated, strict=True):
                old.copy_(torch.where(go, new, old))
            t += go


def step_rounded(buckets: Sequence[RoundedBucket]) -> None:
    """Update buckets whose results are rounded to the bucket's format, in pieces of at most PIECE elements.

    The pieces bound the temporaries. Results do not depend on the pieces: blocks stay whole, and the random bits of an
    element depend on its place in the tensor.
    """
    for params, grads, exp_avgs, exp_avg_sqs, scales, keys, format, scalars, _ in buckets:
        for i, four in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
            for piece in pieces(four[0].shape, format):
                _step_piece(
                    four, scales[i][piece.rows, piece.blocks] if scales else None, keys[i], piece, format, scalars
                )


def _step_piece(
    four: tuple[Tensor, Tensor, Tensor, Tensor],
    scales: Tensor | None,
    key: int,
    piece: Piece,
    format: Format,
    scalars: StepScalars,
) -> None:
    param, grad, exp_avg, exp_avg_sq = (piece.of(t) for t in four)
    numel = piece.end - piece.start
    random, more = (bits.view(param.shape) for bits in random_bits(key, numel, param.device, piece.start))
    if scales is not None:
        old = quantization.dequantize(Quantized(exp_avg, exp_avg_sq, scales), format.block_size)
    else:
        old = (exp_avg.float(), exp_avg_sq.float())
    theta, m, v = update(param, grad, *old, scalars)
    piece.write(four[0], to_bfloat16(theta, more) if format.round_param else theta)
    if scales is not None:
        m, v, new_scales = quantization.encode(m, v, scales, scalars.beta2, format.block_size, random)
        scales.copy_(new_scales)
    elif format.bits == 16:
        m, v = to_bfloat16(m, random), to_bfloat16(v, random >> 16, above_zero=True)
    piece.write(four[2], m)
    piece.write(four[3], v)
