"""The update in `torch._foreach_*` operations, tensors in lists: a few kernels a bucket on a GPU.

On a CPU the lists are cut into pieces that stay in the cache while the nine operations pass over them, since whole
tensors would be streamed through memory nine times. The temporaries are those of one piece, at any model size.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars
from adopt_hf.backends.bucket import Bucket

CPU_TEMPORARIES = 5 * 2**18  # bytes: fp32 then goes in pieces of 2**18 elements (u and the mask, 5 bytes each)

Tensors = tuple[Tensor, Tensor, Tensor, Tensor]  # theta, g, m, v of one tensor or piece


def step(buckets: Sequence[Bucket]) -> None:
    """Update parameters and moments in place (equations (1) to (7)); gradients are only read."""
    for bucket in buckets:
        params, grads, exp_avgs, exp_avg_sqs, s, _ = bucket
        if params[0].device.type != "cpu":
            _step_batch(params, grads, exp_avgs, exp_avg_sqs, s)
            continue
        size = CPU_TEMPORARIES // _temporary_bytes(params[0], grads[0], exp_avgs[0], s)
        tensors = zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
        for batch in _batches((piece for four in tensors for piece in _pieces(four, size)), size):
            p, g, m, v = map(list, zip(*batch, strict=True))
            _step_batch(p, g, m, v, s)


def _temporary_bytes(param: Tensor, grad: Tensor, exp_avg: Tensor, s: StepScalars) -> int:
    """Bytes of temporaries that `_step_batch` needs for an element: u, a copy of g, one of theta, and the mask."""
    copies_g = s.scale != 1 or s.l2 != 0 or grad.dtype != exp_avg.dtype
    copies_theta = param.dtype != exp_avg.dtype
    return exp_avg.element_size() * (1 + copies_g + copies_theta) + 1


def _pieces(four: Tensors, size: int) -> Iterator[Tensors]:
    """Cut four tensors of one shape alike, into views of at most `size` elements."""
    first = four[0]
    if first.numel() <= size:
        yield four
    elif all(t.is_contiguous() for t in four):
        yield from zip(*(t.view(-1).split(size) for t in four), strict=True)
    else:
        dim = max(range(first.dim()), key=first.size)
        length = max(1, first.size(dim) * size // first.numel())
        for part in zip(*(t.split(length, dim) for t in four), strict=True):
            yield from _pieces(part, size)


def _batches(pieces: Iterator[Tensors], size: int) -> Iterator[list[Tensors]]:
    """Join consecutive pieces to lists of at most `size` elements in all."""
    batch: list[Tensors] = []
    total = 0
    for piece in pieces:
        if batch and total + piece[0].numel() > size:
            yield batch
            batch, total = [], 0
        batch.append(piece)
        total += piece[0].numel()
    if batch:
        yield batch


def _never_observed(exp_avg_sqs: list[Tensor]) -> list[Tensor | None]:
    """(2) for each tensor: the mask, or None where it is known to be all False. Only a CPU can look without waiting."""
    if exp_avg_sqs[0].device.type != "cpu":
        return [v == 0 for v in exp_avg_sqs]
    return [v == 0 if int(torch.count_nonzero(v)) < v.numel() else None for v in exp_avg_sqs]


def _step_batch(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], s: StepScalars
) -> None:
    dtype = exp_avgs[0].dtype
    theta = params if params[0].dtype == dtype else [p.to(dtype) for p in params]
    g = grads if grads[0].dtype == dtype else [x.to(dtype) for x in grads]
    m, v = exp_avgs, exp_avg_sqs

    if s.scale != 1:  # (1)
        g = list(torch._foreach_mul(g, s.scale))
    if s.l2 != 0:
        g = list(torch._foreach_add(g, theta, alpha=s.l2))

    new = _never_observed(v)  # (2)

    if s.decay != 1:  # (3)
        torch._foreach_mul_(theta, s.decay)

    u = torch._foreach_sqrt(v)  # (4)
    for u_i in u:
        u_i.nan_to_num_(nan=math.nan, posinf=math.nan)
    torch._foreach_clamp_min_(u, s.eps)
    if u[0].device.type == "cpu":
        for g_i, u_i in zip(g, u, strict=True):
            torch.div(g_i, u_i, out=u_i)
    else:
        u = torch._foreach_div(g, u)
    torch._foreach_clamp_min_(u, -s.clip)
    torch._foreach_clamp_max_(u, s.clip)
    for u_i, new_i in zip(u, new, strict=True):
        if new_i is not None:
            u_i.masked_fill_(new_i, 0)

    if s.beta1 > 0.5:  # (5)
        torch._foreach_lerp_(m, u, 1 - s.beta1)
    else:  # from a weight of 1/2 on torch's lerp is another formula, which turns inf into NaN
        torch._foreach_sub_(u, m)
        torch._foreach_add_(m, u, alpha=1 - s.beta1)

    torch._foreach_add_(theta, m, alpha=-s.lr)  # (6)
    if theta is not params:
        torch._foreach_copy_(params, theta)

    torch._foreach_mul_(v, s.beta2)  # (7)
    torch._foreach_addcmul_(v, g, g, 1 - s.beta2)
    for g_i, u_i, v_i, new_i in zip(g, u, v, new, strict=True):
        if new_i is not None:
            torch.where(new_i, torch.mul(g_i, g_i, out=u_i), v_i, out=v_i)
