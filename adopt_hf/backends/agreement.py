"""Compare the Triton kernel with the definition on a small problem, through several steps.

Results that are rounded stochastically must agree to the bit.
"""

from typing import Any

import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars, step_scalars, update
from adopt_hf.backends import reference
from adopt_hf.backends.bucket import Bucket, CapturableBucket, RoundedBucket
from adopt_hf.backends.dense import Columns
from adopt_hf.backends.problem import Kind, Problem, Wrong
from adopt_hf.backends.triton import launch as triton

GROUPS: tuple[tuple[dict[str, Any], float, tuple[int, ...]], ...] = (  # options, factor of the gradients, t
    ({"eps": 1e-6, "clip_exp": 0.25, "betas": (0.9, 0.9999)}, 1.0, (0, 1)),
    ({"eps": 0.0, "clip_exp": None, "betas": (0.3, 0.9), "maximize": True, "beta2_warmup": True}, 8.0, (5,)),
    ({"eps": 1e-3, "clip_exp": 0.5, "betas": (0.9, 0.99)}, 1.0, (16, 17)),
)


def run(device: torch.device, kind: Kind) -> None:
    """Update problems with the kernel and with the definition.

    Args:
        device: Device to run on.
        kind: Kind of kernel to check.

    Raises:
        Wrong: If the results differ.
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
    """Return where elements have equal bits. Any NaN equals any other NaN."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return (a.view(whole) == b.view(whole)) | (a.isnan() & b.isnan())


def _run_capturable(device: torch.device, kind: Kind) -> None:
    """Check a capturable kernel, which also decides (8), counts, unscales and skips.

    The steps have a number as lr, then a tensor, then a GradScaler without and with an overflow.
    """
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

    The tolerance is `ROUNDINGS` roundings of the largest intermediate number of a result.
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
        if name == "v":  # a zero means "never observed", so no tolerance applies
            agrees &= (got == 0) == (w == 0)
        _raise_at(~agrees, name, w.to(got.dtype), got, sizes, where)


ROUNDINGS = 8


def _four(columns: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    theta, g, m, v = columns
    return theta, g, m, v


def _bounds(before: list[Tensor], s: StepScalars, precision: torch.finfo) -> list[Tensor]:
    """Return the tolerance of each result: the definition on absolute values, in which nothing cancels."""
    smallest = precision.tiny  # below this number an error is not relative
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
    """Return where `got` is the rounding of a number within `bound` of the float64 `wanted`. NaN equals NaN."""
    low, high = ((wanted + d).to(got.dtype) for d in (-bound, bound))
    return ((low <= got) & (got <= high)) | (wanted.isnan() & got.isnan())


def _raise_at(wrong: Tensor, name: str, expected: Tensor, got: Tensor, sizes: list[int], where: str) -> None:
    """Raise `Wrong` with the first wrong element, if any. `expected` and `got` are joined tensors of one column."""
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
