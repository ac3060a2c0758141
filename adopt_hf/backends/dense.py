"""Tensors for kernels that work on raw addresses: gap-free memory, and one layout for the four of a parameter."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_

import torch
from torch import Tensor

from adopt_hf.backends.bucket import check_shapes

Columns = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # theta, g, m, v


def is_plain(t: Tensor) -> bool:
    """Return whether `t` is plain memory at `data_ptr()`, and not a tensor subclass or a meta tensor."""
    return type(t).__torch_dispatch__ is Tensor.__torch_dispatch__ and t.device.type != "meta"


@contextmanager
def dense(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    logically: bool = False,
) -> Iterator[Columns]:
    """Yield the four lists with matching, gap-free memory layouts.

    Element i of memory, counted from `data_ptr()`, is the same element of all four tensors. Tensors that do not match
    are replaced by contiguous copies, which are copied back on exit, on the current stream. Only views and unusual
    gradients need copies.

    Args:
        params: Parameters.
        grads: Their gradients, which are not copied back.
        exp_avgs: Their first moments.
        exp_avg_sqs: Their second moments.
        logically: Whether elements must also be in index (row-major) order. Default: False.

    Raises:
        RuntimeError: If the four tensors of a parameter differ in shape or device.
    """
    columns = (params, grads, exp_avgs, exp_avg_sqs)
    check_shapes(*columns)
    if 0 in [t.data_ptr() for t in grads]:
        grads = [_with_memory(t) for t in grads]
        columns = (params, grads, exp_avgs, exp_avg_sqs)
    is_contiguous = [t.is_contiguous() for column in columns for t in column]
    is_neg = [t.is_neg() for column in columns[:2] for t in column]  # a lazily negated view
    if False not in is_contiguous and True not in is_neg:
        yield columns
        return
    columns = (list(params), list(grads), list(exp_avgs), list(exp_avg_sqs))
    replaced = []
    for i, four in enumerate(zip(*columns, strict=True)):
        if not _alike(four, logically):
            copies = [t.resolve_neg().contiguous() for t in four]
            for column, t, copy in zip(columns, four, copies, strict=True):
                if copy is not t:
                    column[i] = copy
                    if column is not columns[1]:
                        replaced.append((t, copy))
    yield columns
    for t, copy in replaced:
        t.copy_(copy)


def are_same(columns: Columns, others: Columns) -> bool:
    """Return whether both hold the same tensor objects."""
    return all(all(map(is_, column, other)) for column, other in zip(columns, others, strict=True))


def written(params: list[Tensor]) -> None:
    """Tell autograd that a kernel has changed `params`, so a graph that needs the old values raises an error.

    Moments and step counts are in no graph. torch's own fused optimizers do not tell autograd.
    """
    torch.autograd.graph.increment_version(params)


def _with_memory(t: Tensor) -> Tensor:
    """Return `t`, or a copy if it is one of torch's tensors of zeros without memory."""
    if t.data_ptr() != 0 or t.numel() == 0:
        return t
    if t.untyped_storage().nbytes() == 0:
        raise RuntimeError(
            f"a gradient of shape {tuple(t.shape)} has no memory, because its storage was resized to 0: keep gradients "
            "until step() has ended"
        )
    return t.clone()


def _alike(four: tuple[Tensor, ...], logically: bool) -> bool:
    if any(t.is_neg() for t in four):
        return False
    if all(t.is_contiguous() for t in four):
        return True
    return not logically and len({t.stride() for t in four}) == 1 and is_gapless(four[0])


def is_gapless(t: Tensor) -> bool:
    """Return whether the elements fill a stretch of memory without gaps or overlaps."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
