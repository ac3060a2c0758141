"""Tensors as kernels that work on raw addresses need them: dense memory, the four of a parameter laid out alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_

import torch
from torch import Tensor

from adopt_hf.backends.bucket import check_shapes

Columns = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # theta, g, m, v


def is_plain(t: Tensor) -> bool:
    """Whether `t` is memory that its `data_ptr()` is the address of, and not a subclass that handles its operations."""
    return type(t).__torch_dispatch__ is Tensor.__torch_dispatch__ and t.device.type != "meta"


@contextmanager
def dense(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    logically: bool = False,
) -> Iterator[Columns]:
    """The same lists, where need be with copies in the place of tensors; what became of the copies is copied back.

    Element i of memory, counted from `data_ptr()`, is then the same element of all four. Nothing is copied where they
    have the same strides without gaps, as they have but for views and unusual gradients. The copies are made and copied
    back on the current stream.

    Args:
        logically: the elements are in the order of their indices, too.
    """
    columns = (params, grads, exp_avgs, exp_avg_sqs)
    check_shapes(*columns)
    if 0 in [t.data_ptr() for t in grads]:
        grads = [_with_memory(t) for t in grads]
        columns = (params, grads, exp_avgs, exp_avg_sqs)
    is_contiguous = [t.is_contiguous() for column in columns for t in column]
    is_neg = [t.is_neg() for column in columns[:2] for t in column]  # a view that stands for its negative
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
    """Return whether both have the very same tensors."""
    return all(all(map(is_, column, other)) for column, other in zip(columns, others, strict=True))


def written(params: list[Tensor]) -> None:
    """Tell autograd, which has not seen the kernel write: a graph that still needs the old values raises an error.

    Moments and step counts are in no graph. torch's own fused optimizers tell autograd of nothing.
    """
    torch.autograd.graph.increment_version(params)


def _with_memory(t: Tensor) -> Tensor:
    """`t`, or a copy if it is one of torch's tensors of zeros that have none."""
    if t.data_ptr() != 0 or t.numel() == 0:
        return t
    if t.untyped_storage().nbytes() == 0:
        raise RuntimeError(f"the memory of a gradient of shape {tuple(t.shape)} has been given back")
    return t.clone()


def _alike(four: tuple[Tensor, ...], logically: bool) -> bool:
    if any(t.is_neg() for t in four):
        return False
    if all(t.is_contiguous() for t in four):
        return True
    return not logically and len({t.stride() for t in four}) == 1 and is_gapless(four[0])


def is_gapless(t: Tensor) -> bool:
    """Whether the elements fill a stretch of memory, each its own place."""
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1):
        if stride != expected:
            return False
        expected *= size
    return True
