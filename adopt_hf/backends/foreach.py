"""The update in `torch._foreach_*` operations on lists of tensors, in pieces: some twenty launches per piece on a GPU.

A piece is a list of tensors, or of parts of large ones, whose temporaries stay within a budget. The temporaries of a
piece are in flat buffers. An operation without a `_foreach_` form, such as the mask "never observed", is one ordinary
operation on a buffer. On a CPU a piece stays in the cache between operations. Whole tensors would be read from memory
in each operation.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars, least_of
from adopt_hf.backends.bucket import Bucket, check_shapes
from adopt_hf.backends.dense import is_gapless

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]  # theta, g, m, v of one tensor or of a part


class Room(NamedTuple):
    """The limits of a device type."""

    temporaries: int  # bytes of a piece
    looks: bool  # whether the host can read a value without waiting, as on "cpu"


ROOMS = {"cpu": Room(9 * 2**17, looks=True)}  # pieces of 2**17 elements in float32
ELSEWHERE = Room(2**28, looks=False)


def step(buckets: Sequence[Bucket]) -> None:
    """Update parameters and moments in place (equations (1) to (7)). Gradients are only read.

    Raises:
        RuntimeError: If a parameter, its gradient and its moments differ in shape. Nothing has been changed then.
    """
    for bucket in buckets:
        check_shapes(*bucket[:4])
    for bucket in buckets:
        step_within(ROOMS.get(bucket.params[0].device.type, ELSEWHERE), bucket)


def step_within(room: Room, bucket: Bucket) -> None:
    """Update one bucket in pieces whose temporaries fit into `room`. Those of "cpu" fit into the cache."""
    params, grads, exp_avgs, exp_avg_sqs, s, _ = bucket
    size = room.temporaries // _temporary_bytes(params[0], exp_avgs[0])
    tensors = zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    for piece in _joined((part for four in tensors for part in _parts(four, size)), size):
        p, g, m, v = map(list, zip(*piece, strict=True))
        _step_piece(p, g, m, v, s, room.looks)


def _temporary_bytes(param: Tensor, exp_avg: Tensor) -> int:
    """Return the bytes of temporaries per element: g, u, the mask, and theta if its dtype differs from that of m."""
    return exp_avg.element_size() * (2 if param.dtype == exp_avg.dtype else 3) + 1


def _parts(four: Tensors, size: int) -> Iterator[Tensors]:
    """Cut four tensors of one shape in the same way, into views of at most `size` elements."""
    first = four[0]
    if first.dim() > 1 and not first.is_contiguous() and len({t.stride() for t in four}) == 1 and is_gapless(first):
        order = sorted(range(first.dim()), key=first.stride, reverse=True)  # in the order of memory
        four = tuple(t.permute(order) for t in four)  # type: ignore[assignment]
    if first.numel() <= size:
        yield four
    elif all(t.is_contiguous() for t in four):
        yield from zip(*(t.view(-1).split(size) for t in four), strict=True)
    else:
        dim = max(range(first.dim()), key=four[0].size)
        length = max(1, four[0].size(dim) * size // first.numel())
        for part in zip(*(t.split(length, dim) for t in four), strict=True):
            yield from _parts(part, size)


def _joined(parts: Iterator[Tensors], size: int) -> Iterator[list[Tensors]]:
    """Yield pieces of consecutive parts, of at most `size` elements in total."""
    piece: list[Tensors] = []
    total = 0
    for part in parts:
        if piece and total + part[0].numel() > size:
            yield piece
            piece, total = [], 0
        piece.append(part)
        total += part[0].numel()
    if piece:
        yield piece


def _copied(tensors: list[Tensor], flat: Tensor, sizes: list[int]) -> list[Tensor]:
    """Copy `tensors` into `flat`, and return its parts in the shapes of the tensors."""
    parts = [part if t.dim() == 1 else part.view(t.shape) for part, t in zip(flat.split(sizes), tensors, strict=True)]
    torch._foreach_copy_(parts, tensors)
    return parts


def _step_piece(
    params: list[Tensor], grads: list[Tensor], m: list[Tensor], v: list[Tensor], s: StepScalars, looks: bool
) -> None:
    """Update a piece. The tensors of g, u and theta are parts of the flat buffers `all_g`, `all_u` and `all_theta`."""
    dtype, sizes, is_cast = m[0].dtype, [t.numel() for t in m], params[0].dtype != m[0].dtype
    rows = torch.empty(3 if is_cast else 2, sum(sizes), dtype=dtype, device=m[0].device).unbind()
    all_g, all_u, all_theta = rows[0], rows[1], rows[-1]
    as_given = looks and grads[0].dtype == dtype and s.scale == 1 and s.l2 == 0  # a CPU pays for copies, not launches
    g, u = grads if as_given else _copied(grads, all_g, sizes), _copied(v, all_u, sizes)
    theta = _copied(params, all_theta, sizes) if is_cast else params

    if s.scale != 1:  # (1)
        torch._foreach_mul_(g, s.scale)
    if s.l2 != 0:
        torch._foreach_add_(g, theta, alpha=s.l2)

    smallest, largest = (float(x) for x in torch.aminmax(all_u)) if looks and all_u.numel() > 0 else (0.0, math.inf)
    new, least = None if smallest > 0 else all_u == 0, least_of(dtype)  # (2); None: no element is new

    if s.decay != 1:  # (3)
        torch._foreach_mul_(theta, s.decay)

    torch._foreach_sqrt_(u)  # (4)
    if not largest < math.inf:
        torch._foreach_addcmul_(u, u, u, 0)  # turns inf into NaN, and changes nothing else
    if least <= s.eps < math.sqrt(least):  # the root of `least` counts as 0
        torch.threshold_(all_u, 1.2 * math.sqrt(least), s.eps)  # the root of 2 * least is 1.4 times as large
    else:
        torch._foreach_clamp_min_(u, s.eps)
    if as_given:
        for g_i, u_i in zip(g, u, strict=True):
            torch.div(g_i, u_i, out=u_i)
    else:
        torch.div(all_g, all_u, out=all_u)
    if s.beta2 > 0.5:
        torch._foreach_clamp_min_(u, -s.clip)
        torch._foreach_clamp_max_(u, s.clip)
    else:  # one launch instead of two, because (7) needs one more
        all_u.clamp_(-s.clip, s.clip)
    if new is not None:
        all_u.masked_fill_(new, 0)

    if s.beta1 > 0.5:  # (5)
        torch._foreach_lerp_(m, u, 1 - s.beta1)
    else:  # torch's lerp uses another formula from weight 1/2 on, which turns inf into NaN
        torch._foreach_sub_(u, m)
        torch._foreach_add_(m, u, alpha=1 - s.beta1)

    torch._foreach_add_(theta, m, alpha=-s.lr)  # (6)
    if is_cast:
        torch._foreach_copy_(params, theta)

    torch._foreach_mul_(v, s.beta2)  # (7)
    if new is None:
        torch._foreach_addcmul_(v, g, g, 1 - s.beta2)
        if not smallest * s.beta2 >= torch.finfo(dtype).tiny:
            torch._foreach_clamp_min_(v, least)
    else:  # a new element has beta2*v = 0 and a weight of 1 for g*g
        if as_given:
            _copied(grads, all_g, sizes)
        torch.mul(all_g, 1 - s.beta2, out=all_u)
        torch.where(new, all_g, all_u, out=all_u)
        torch._foreach_addcmul_(v, u, g)
        if s.beta2 > 0.5:  # beta2*v does not become 0
            torch._foreach_abs_(u)
        else:
            all_u.logical_or_(new.logical_not_())
        torch._foreach_clamp_max_(u, least)  # 0 where an element stays new
        torch._foreach_maximum_(v, u)
