"""Small problems with known answers: tensors for a kernel, a model for an optimizer, and how far results lie apart."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from experiments.gpu.check import Check

Columns = list[list[Tensor]]  # theta, g, m and v

BASE: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.9999),
    "eps": 1e-6,
    "weight_decay": 0.1,
    "decouple": True,
    "clip_exp": 0.25,
    "beta2_warmup": False,
    "maximize": False,
}
INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
UNSEEN = 0.1  # share of the elements that were never observed
# Empty and 0-d tensors, the borders of a chunk, and more than one program.
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (7,), (1023,), (1025,), (300, 40), (16384,), (16385,), (40000,)]
DRY_SHAPES: list[tuple[int, ...]] = [(), (0,), (7,), (1025,)]


def group(**options: Any) -> dict[str, Any]:
    """Return a param group with these options."""
    return BASE | options


def columns(
    device: torch.device,
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Columns:
    """Return parameters, gradients of all sizes, and moments. They are made on the CPU: the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    found: Columns = [[], [], [], []]
    for shape in shapes:
        p, g, m, v = (torch.randn(shape, generator=generator) for _ in range(4))
        seen = torch.rand(shape, generator=generator) > UNSEEN
        g *= 10 ** float(torch.empty(1).uniform_(-4, 2, generator=generator))
        numbers = (p, g, m * seen, v**2 * seen)
        for column, t, of_column in zip(found, numbers, (dtype, grad_dtype or dtype, state, state), strict=True):
            column.append(t.to(device, of_column))
    return found


def cloned(those: Columns) -> Columns:
    """Return a copy with the same strides."""
    return [[t.clone(memory_format=torch.preserve_format) for t in column] for column in those]


def ulps(a: Tensor, b: Tensor) -> float:
    """Return the largest distance in representable numbers, or inf if NaN stands at different places."""
    a, b = a.cpu(), b.cpu()
    if not a.numel():
        return 0.0
    if a.dtype not in INTEGERS:
        return float((a.long() - b.long()).abs().max())
    if not torch.equal(a.isnan(), b.isnan()):
        return math.inf
    return float((_place(a) - _place(b)).abs().max())


def _place(x: Tensor) -> Tensor:
    """Return the place of each number in the order of all numbers of its type."""
    integer = INTEGERS[x.dtype]
    bits = x.nan_to_num(0.0, math.inf, -math.inf).contiguous().view(integer).long()
    return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)


def worst(got: Columns, want: Columns) -> float:
    """Return the largest `ulps` of theta, m and v, and of the scales."""
    compared = [both for i, both in enumerate(zip(got, want, strict=True)) if i != 1]
    return max(ulps(a, b) for both in compared for a, b in zip(*both, strict=True))


# -- a model ----------------------------------------------------------------------------------------------------------

MODEL: list[tuple[int, ...]] = [(), (7,), (300, 40), (40000,)]
DRY_MODEL: list[tuple[int, ...]] = [(), (7,), (8, 40), (1030,)]
LATE = 1  # the parameter whose gradient is zero at first
LATE_FROM = 3


def model(check: Check, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    """Return parameters of several shapes, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    shapes = DRY_MODEL if check.dry else MODEL
    return [Parameter(torch.randn(shape, generator=generator).to(check.device, dtype)) for shape in shapes]


def loss(params: Sequence[Parameter], x: Tensor) -> Tensor:
    """Return a loss whose gradients differ between steps. One parameter's is zero until `x` reaches `LATE_FROM`."""
    parts = [((p - x.cos()) ** 2).mean() * (x >= LATE_FROM if i == LATE else 1) for i, p in enumerate(params)]
    return torch.stack(parts).sum()


def train(optimizer: torch.optim.Optimizer, params: Sequence[Parameter], xs: Iterable[float]) -> None:
    """Take the steps of an ordinary loop, which allocates the gradients again in each step."""
    for x in xs:
        optimizer.zero_grad(set_to_none=True)
        loss(params, torch.tensor(float(x), device=params[0].device)).backward()
        optimizer.step()


def apart(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Return the largest absolute difference."""
    return max(float((x.detach().float() - y.detach().float()).abs().max()) for x, y in zip(a, b, strict=True))


def equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Return whether all tensors are equal to the bit."""
    return all(map(torch.equal, a, b))


Make = Callable[[list[Parameter]], torch.optim.Optimizer]
