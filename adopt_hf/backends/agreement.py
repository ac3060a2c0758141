"""Update a small problem with the Triton kernel and by the definition, and find where they differ.

The problem: tensors around a block and a chunk, at addresses that are aligned and not, many of them in one table,
through several steps, with zeros, subnormal numbers, inf and NaN among their elements. What is rounded stochastically
must agree to the bit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars, state_dtype, step_scalars, update
from adopt_hf.backends import reference
from adopt_hf.backends.bucket import Bucket, CapturableBucket, Memory, RoundedBucket
from adopt_hf.backends.dense import Columns
from adopt_hf.backends.triton import launch as triton
from adopt_hf.state import quantization
from adopt_hf.state.formats import Format

MANY = 150  # small tensors in one table


class Kind(NamedTuple):
    """What the Triton kernel is compiled for."""

    param: torch.dtype
    grad: torch.dtype
    coupled: bool  # weight decay is added to the gradient
    capturable: bool
    format: Format
    clipped: bool = True  # without a clip the capturable kernel is another one, and the others are not

    def __str__(self) -> str:
        words = [f"parameters of {self.param}", f"gradients of {self.grad}"]
        words += [f"moments of {self.format.bits} bits"] if self.format.bits < 32 else []
        words += [f"blocks of {self.format.block_size}"] if self.format.bits == 8 else []
        words += ["stochastic rounding"] if self.format.round_param else []
        words += ["coupled weight decay"] if self.coupled else []
        words += ["capturable=True"] if self.capturable else []
        words += ["no clip"] if not self.clipped else []
        return ", ".join(words)


class Wrong(Exception):  # noqa: N818 - what the check finds
    """A kernel's result is not the definition's; the message says where."""


GROUPS: tuple[tuple[dict[str, Any], float, tuple[int, ...]], ...] = (  # options, factor of the gradients, t
    ({"eps": 1e-6, "clip_exp": 0.25, "betas": (0.9, 0.9999)}, 1.0, (0, 1)),
    ({"eps": 0.0, "clip_exp": None, "betas": (0.3, 0.9), "maximize": True, "beta2_warmup": True}, 8.0, (5,)),
    ({"eps": 1e-3, "clip_exp": 0.5, "betas": (0.9, 0.99)}, 1.0, (16, 17)),
)
GRADS = (0.0, -0.0, 1e-45, -1e-40, 1e-20, 1.0, 3e38, float("inf"), -float("inf"), float("nan"))
SQUARES = (0.0, 1e-45, 1e-41, 1e-38, 1.0, float("inf"), float("nan"))
SPECIAL = torch.tensor([(g, v) for v in SQUARES for g in GRADS], dtype=torch.float64, device="cpu")
GUARD, GUARDED = 40, 7  # elements behind each tensor, and their value


class Problem:
    """Tensors of one kind on a device, each in memory of its own that ends with a guard."""

    def __init__(self, device: torch.device, kind: Kind, seed: int) -> None:
        self.device, self.kind = device, kind
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.places = _places(kind)
        self.guarded: list[tuple[Tensor, int, int]] = []
        self.memory = Memory()  # of the bucket, whose tables are made in the first step and used again
        self.begun = False
        drawn = [self._moments(shape) for shape, _ in self.places]
        self.params = self._put([self._normal(shape) for shape, _ in self.places], kind.param, 0)
        self.scales: list[Tensor] = []
        if kind.format.bits == 8:
            coded = [quantization.quantize(m, v, kind.format.block_size, i) for i, (m, v) in enumerate(drawn)]
            self.exp_avgs = self._put([q.exp_avg for q in coded], torch.uint8, 2)
            self.exp_avg_sqs = self._put([q.exp_avg_sq for q in coded], torch.uint8, 3)
            self.scales = [q.scales.to(device) for q in coded]
        else:
            dtype = torch.bfloat16 if kind.format.bits == 16 else state_dtype(kind.param)
            self.exp_avgs = self._put([m for m, _ in drawn], dtype, 2)
            self.exp_avg_sqs = self._put([v for _, v in drawn], dtype, 3)

    def grads(self) -> list[Tensor]:
        """New gradients at new addresses, as after `zero_grad(set_to_none=True)`."""
        drawn = []
        for shape, _ in self.places:
            g = self._normal(shape) * self._normal(shape).mul(3).exp2()
            for at in _special(g.numel()):
                g.view(-1)[at] = SPECIAL[:, 0].float()
            drawn.append(g)
        grads = self._put(drawn, self.kind.grad, 1)
        self.memory.grad_addresses = [g.data_ptr() for g in grads] if self.begun else None
        self.begun = True
        return grads

    def columns(self, grads: list[Tensor]) -> Columns:
        return self.params, grads, self.exp_avgs, self.exp_avg_sqs

    def check_guards(self) -> None:
        """Raise `Wrong` if memory around a tensor was written."""
        for whole, first, end in self.guarded:
            for part in (whole[:first], whole[end:]):
                if not bool(part.eq(GUARDED).all()):
                    raise Wrong(f"memory beside a tensor of {end - first} elements was written")

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float32, device="cpu")

    def _moments(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        seen = torch.rand(shape, generator=self.generator, dtype=torch.float32, device="cpu") > 0.2
        m, v = self._normal(shape) * seen, self._normal(shape).square() * self._normal(shape).mul(5).exp2() * seen
        for at in _special(v.numel()):
            v.view(-1)[at] = SPECIAL[:, 1].float()
        return m, v

    def _put(self, values: Sequence[Tensor], dtype: torch.dtype, column: int) -> list[Tensor]:
        """Copies on the device, at the distance from an aligned address that the place of the tensor says."""
        result = []
        for t, (shape, offsets) in zip(values, self.places, strict=True):
            first, n = offsets[column], t.numel()
            whole = torch.full((first + n + GUARD,), GUARDED, dtype=dtype, device=self.device)
            whole[first : first + n].copy_(t.reshape(-1).to(dtype))
            self.guarded.append((whole, first, first + n))
            result.append(whole[first : first + n].view(shape))
        return result


def _special(n: int) -> list[slice]:
    """Where special numbers stand in a tensor of `n` elements: in its middle and at its end."""
    k = len(SPECIAL)
    return [slice(n // 2, n // 2 + k), slice(n - k, n)] if n > 4 * k else []


def _places(kind: Kind) -> list[tuple[tuple[int, ...], tuple[int, int, int, int]]]:
    """Shapes, and how many elements from an aligned address theta, g, m and v begin."""
    aligned = (0, 0, 0, 0)
    odd = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2, 2, 2, 2), (4, 4, 4, 4)]
    chunk, block = triton.lengths(kind.format)
    shapes: list[tuple[int, ...]] = [(0,), (), (7,), (block - 1,), (block,), (block + 1,)]
    shapes += [(chunk,), (chunk + 1,), (2 * chunk + block + 3,)]
    if kind.format.bits == 8:  # rows, whose last blocks are shorter or not
        shapes += [(3, block), (2, 2 * block + 4), (3, block // 2 + 5), (5, chunk // 4 + 2)]
    places = [(shape, aligned) for shape in shapes]
    places += [((block + 3,), offsets) for offsets in odd] + [((chunk + 4,), odd[-1])]
    many = MANY if kind.format.is_plain else MANY // 5  # whose definition goes tensor by tensor
    return places + [((1 + i % 5,), aligned) for i in range(many)]


def run(device: torch.device, kind: Kind) -> None:
    """Update problems with the kernel and by the definition.

    Raises:
        Wrong: If they differ.
    """
    if kind.capturable:
        return _run_capturable(device, kind)
    step = _rounded_step if not kind.format.is_plain else _plain_step
    for seed, (options, factor, counts) in enumerate(GROUPS):
        group = _group(kind, options)
        problem = Problem(device, kind, seed)
        for t in counts:
            step(problem, step_scalars(group, t, factor), t)
            problem.check_guards()


def _group(kind: Kind, options: dict[str, Any]) -> dict[str, Any]:
    common = {"lr": 1e-2, "weight_decay": 0.1, "decouple": not kind.coupled, "maximize": False, "beta2_warmup": False}
    return common | options


def _plain_step(problem: Problem, s: StepScalars, t: int) -> None:
    grads = problem.grads()
    columns = problem.columns(grads)
    before = [torch.cat([x.reshape(-1) for x in column]) for column in columns]
    triton.step([Bucket(*columns, s, problem.memory)])
    after = [torch.cat([x.reshape(-1) for x in column]) for column in columns]
    _compare(before, after, s, [x.numel() for x in grads], f"t = {t}")


def _rounded_step(problem: Problem, s: StepScalars, t: int) -> None:
    kind, grads = problem.kind, problem.grads()
    columns, scales = problem.columns(grads), problem.scales
    wanted, wanted_scales = _cloned(columns), [x.clone() for x in scales]
    keys = [(2**31 * i + 77_777_777 * (t + 1)) % 2**32 for i in range(len(grads))]
    triton.step_rounded([RoundedBucket(*columns, scales, keys, kind.format, s, problem.memory)])
    reference.step_rounded([RoundedBucket(*wanted, wanted_scales, keys, kind.format, s)])
    names = ("theta", "g", "m", "v", "scales")
    for name, got, expected in zip(names, (*columns, scales), (*wanted, wanted_scales), strict=True):
        if got:
            a, b = (torch.cat([x.reshape(-1) for x in column]) for column in (got, expected))
            _raise_at(~_same_bits(a, b), name, b, a, [x.numel() for x in got], f"t = {t}")


def _cloned(columns: Columns) -> Columns:
    theta, g, m, v = ([x.clone() for x in column] for column in columns)
    return theta, g, m, v


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Where elements are equal, the sign of a zero too; any NaN equals any other."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return (a.view(whole) == b.view(whole)) | (a.isnan() & b.isnan())


def _run_capturable(device: torch.device, kind: Kind) -> None:
    """The kernel also decides (8), counts, unscales and skips: with a number and a tensor as lr, then with a scaler."""
    problem = Problem(device, kind, seed=0)
    count = len(problem.places)
    steps = [torch.full((), 5.0 * (i % 2), dtype=torch.float32, device=device) for i in range(count)]
    ts = [5 * (i % 2) for i in range(count)]
    one = torch.ones(1, dtype=torch.float32, device=device)
    group = _group(kind, GROUPS[0][0] if kind.clipped else GROUPS[0][0] | {"clip_exp": None})
    on_device = group | {"lr": one * group["lr"], "beta2_warmup": 0.65}
    plan: list[tuple[dict[str, Any], Tensor | None, Tensor | None]] = [
        (group, None, None),
        (on_device, None, None),
        (on_device, one * 8, one * 0),
        (on_device, one * 8, one),
    ]
    for number, (options, scale, found_inf) in enumerate(plan):
        grads = problem.grads()
        for g in grads[:: 3 if number == 0 else count]:
            g.zero_()
        columns = problem.columns(grads)
        before = _cloned(columns)
        triton.step_capturable([CapturableBucket(*columns, steps, options, scale, found_inf, None, problem.memory)])
        seen = torch.stack([g.ne(0).any() for g in grads]).tolist()
        factor, overflow = (1.0 if scale is None else 8.0), number == 3
        goes = [not overflow and (t > 0 or s) for t, s in zip(ts, seen, strict=True)]
        host = options | {"lr": float(options["lr"])}
        for t in sorted(set(ts)):
            for go in (True, False):
                members = [i for i in range(count) if ts[i] == t and goes[i] == go]
                if not members:
                    continue
                old, new = (
                    [torch.cat([column[i].reshape(-1) for i in members]) for column in x] for x in (before, columns)
                )
                sizes, where = [grads[i].numel() for i in members], f"step {number}, t = {t}"
                if go:
                    _compare(old, new, step_scalars(host, t, factor), sizes, where)
                else:
                    for name, a, b in zip(("theta", "g", "m", "v"), old, new, strict=True):
                        _raise_at(~_same_bits(a, b), f"{name} that was to stay", a, b, sizes, where)
        ts = [t + go for t, go in zip(ts, goes, strict=True)]
        counted = torch.stack(steps).tolist()
        if counted != ts:
            i = next(i for i in range(count) if counted[i] != ts[i])
            raise Wrong(f"the step count of tensor {i} is {counted[i]:g} instead of {ts[i]} (step {number})")
        problem.check_guards()


# -- the comparison ---------------------------------------------------------------------------------------------------


def _compare(before: list[Tensor], after: list[Tensor], s: StepScalars, sizes: list[int], where: str) -> None:
    """Compare one step of the kernel with the definition in the working precision, and in float64.

    Some roundings more or less are allowed: `ROUNDINGS` of the largest number on the way to a result.
    """
    dtype = before[2].dtype
    working = update(*_four(before), s)
    exact = update(*_four([x.double() for x in before]), s)
    bounds = _bounds(before, s, torch.finfo(dtype))
    _raise_at(~_same_bits(before[1], after[1]), "g", before[1], after[1], sizes, where)
    for name, got, w, e, bound in zip(("theta", "m", "v"), (after[0], *after[2:]), working, exact, bounds, strict=True):
        finite = w.isfinite()
        agrees = _within(got, w.double(), torch.where(finite, bound, 0.0))
        agrees &= ~finite | _within(got, e, bound)
        if name == "v":  # a zero means that an element was never observed, however near the numbers are
            agrees &= (got == 0) == (w == 0)
        _raise_at(~agrees, name, w.to(got.dtype), got, sizes, where)


ROUNDINGS = 8


def _four(columns: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    theta, g, m, v = columns
    return theta, g, m, v


def _bounds(before: list[Tensor], s: StepScalars, precision: torch.finfo) -> list[Tensor]:
    """Of each result, how far it may be off: the definition on absolute values, which nothing cancels."""
    smallest = precision.tiny  # below it an error is not relative
    theta, g, m, v = (x.double().abs() for x in before)
    sizes = s._replace(scale=abs(s.scale), lr=-s.lr)
    free = update(theta, g + 8 * smallest, m, v, sizes._replace(clip=float("inf")))
    clipped = update(theta, g + 8 * smallest, m, v, sizes)
    result = []
    for a, b in zip(free, clipped, strict=True):
        size = torch.where(a.isfinite(), a, torch.where(b.isfinite(), b, 0.0))
        result.append(ROUNDINGS * precision.eps * (size + smallest))
    return result


def _within(got: Tensor, wanted: Tensor, bound: Tensor) -> Tensor:
    """Whether `got` is what a number that is at most `bound` from the float64 `wanted` is rounded to; NaN is NaN."""
    low, high = ((wanted + d).to(got.dtype) for d in (-bound, bound))
    return ((low <= got) & (got <= high)) | (wanted.isnan() & got.isnan())


def _raise_at(wrong: Tensor, name: str, expected: Tensor, got: Tensor, sizes: list[int], where: str) -> None:
    """Raise `Wrong` with the first wrong element, if there is one. The tensors are those of a column, joined."""
    if not bool(wrong.any()):
        return
    at = int(wrong.nonzero()[0])
    inside, tensor = at, 0
    while tensor < len(sizes) - 1 and inside >= sizes[tensor]:
        inside -= sizes[tensor]
        tensor += 1
    raise Wrong(
        f"{name} of element {inside} of tensor {tensor}, which has {sizes[tensor]}: expected {expected[at].item()!r}, "
        f"got {got[at].item()!r} ({int(wrong.sum())} elements differ, {where})"
    )
