"""One call of a kernel: versions, parity, special numbers, layouts, rounded kinds, recompilations, huge tensors."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adopt_hf import backends
from adopt_hf.algorithm import step_scalars
from adopt_hf.backends.bucket import Bucket, RoundedBucket
from adopt_hf.state import quantization
from adopt_hf.state.formats import Format
from experiments.gpu.check import Check
from experiments.gpu.problems import DRY_SHAPES, SHAPES, Columns, cloned, columns, group, worst

TRITON, REFERENCE, FOREACH, CPU = backends.TRITON, backends.REFERENCE, backends.FOREACH, backends.CPU
HOST = torch.device("cpu")
T = 7  # steps completed before the one that is compared


def environment(check: Check) -> None:
    """The versions, and whether the kernel can run at all."""
    why = TRITON.why_not(check.device, torch.float32)
    check.say(True, "versions", check.head["environment"])
    check.say(why is None, "the kernel can run", why or "")


def parity(check: Check) -> None:
    """Fused, foreach and the definition on the GPU, and the compiled CPU kernel: how many numbers lie between them."""
    single, double, bf16, half = torch.float32, torch.float64, torch.bfloat16, torch.float16
    dtypes = [(t, t) for t in (single, bf16, half, double)] + [(single, bf16), (bf16, single)]
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "l2, maximize": {"decouple": False, "maximize": True},
        "no clip, eps 0": {"clip_exp": None, "eps": 0.0},
        "warm-up": {"beta2_warmup": True},
        "scaled": {},
    }
    for dtype, grad_dtype in dtypes:
        for variant, options in dict(list(variants.items())[: 2 if check.dry else None]).items():
            case = f"{dtype} with g {grad_dtype}, {variant}"
            if check.skipped_for_time(case):
                return
            shapes = DRY_SHAPES if check.dry else SHAPES
            scalars = step_scalars(group(**options), T, 1024.0 if variant == "scaled" else 1.0)
            start = columns(check.device, shapes, dtype, grad_dtype)
            fused, definition, foreach = (_stepped(b, start, scalars) for b in (TRITON, REFERENCE, FOREACH))
            check.synchronize()
            distance = worst(fused, definition)
            check.say(distance == 0, f"fused is the definition on the GPU, {case}", f"{distance:g} ulp")
            if CPU.why_not(HOST, dtype) is None:
                host = _stepped(CPU, columns(HOST, shapes, dtype, grad_dtype), scalars)
                distance = worst(fused, host)
                check.say(distance == 0, f"fused is the CPU kernel, {case}", f"{distance:g} ulp")
            # foreach contracts multiplications and additions: within rounding
            off = max(map(_relative, [*foreach[0], *foreach[3]], [*definition[0], *definition[3]]))
            most = {double: 1e-12, single: 1e-5}.get(dtype, 2e-2)
            check.say(off < most, f"foreach is the definition on the GPU to rounding, {case}", f"{off:.1e} relative")


def _stepped(backend: backends.Backend, start: Columns, scalars: Any) -> Columns:
    found = cloned(start)
    backend.step([Bucket(*found, scalars)])
    return found


def _relative(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    return float(((a.double() - b.double()).abs() / (b.double().abs() + 1e-3)).max())


def specials(check: Check) -> None:
    """NaN, inf, zeros and subnormal numbers in every place."""
    rows = [
        (p, g, m, v)
        for p in (1.0, math.inf)
        for g in (0.0, 1.0, math.nan, math.inf, -math.inf, 1e-42, 3e38)
        for m in (0.0, 1.0, math.nan)
        for v in (0.0, 1.0, math.inf, math.nan, 1e-42, 1e-30)
    ]
    start = [[column.clone().to(check.device)] for column in torch.tensor(rows).T.contiguous().unbind()]
    for options in ({}, {"clip_exp": None, "eps": 0.0}, {"decouple": False}):
        scalars = step_scalars(group(**options), 5)
        fused, definition, foreach = (_stepped(b, start, scalars) for b in (TRITON, REFERENCE, FOREACH))
        distance = worst(fused, definition)
        check.say(distance == 0, f"fused is the definition, {options}", f"{distance:g} ulp")
        places = [torch.equal(a[0].isnan(), b[0].isnan()) for a, b in zip(foreach, definition, strict=True)]
        check.say(all(places), f"foreach has NaN where the definition has it, {options}")


def layouts(check: Check) -> None:
    """Addresses that are not aligned, gaps, other orders of dimensions, expanded gradients; neighbours untouched."""
    scalars = step_scalars(group(), T)
    for dtype in (torch.float32, torch.bfloat16):
        for offset in (0, 3) if check.dry else (0, 1, 2, 3, 4, 5, 8):
            _at_an_address(check, dtype, offset, scalars)
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "channels_last": lambda t: t.to(memory_format=torch.channels_last),
        "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
        "gaps": lambda t: torch.stack([t, t], -1)[..., 0],
    }
    for name, make in made.items():
        those = [[make(column[0])] for column in columns(check.device, [(4, 6, 5, 3)])]
        want = _stepped(REFERENCE, those, scalars)
        TRITON.step([Bucket(*those, scalars)])
        distance = worst(those, want)
        check.say(distance == 0, name, f"{distance:g} ulp")
    those = columns(check.device, [(64, 33)])
    those[1] = [torch.ones((), device=check.device).expand(64, 33)]
    want = _stepped(REFERENCE, those, scalars)
    TRITON.step([Bucket(*those, scalars)])
    check.say(worst(those, want) == 0, "expanded gradient")


def _at_an_address(check: Check, dtype: torch.dtype, offset: int, scalars: Any) -> None:
    """A step `offset` elements off, with canaries on both sides."""
    canary, margin, n = 7, 64, 1100 if check.dry else 40000
    those, homes = columns(check.device, [(n,)], dtype), []
    for column in those:
        home = torch.full((n + margin,), canary, dtype=column[0].dtype, device=check.device)
        home[offset : offset + n].copy_(column[0])
        homes.append(home)
        column[0] = home[offset : offset + n]
    want = [[t.clone() for t in column] for column in those]
    REFERENCE.step([Bucket(*want, scalars)])
    TRITON.step([Bucket(*those, scalars)])
    check.synchronize()
    clean = all(bool((home[:offset] == canary).all() and (home[offset + n :] == canary).all()) for home in homes)
    distance = worst(those, want)
    name = f"{dtype}, {offset} elements off"
    check.say(distance == 0 and clean, name, f"{distance:g} ulp, neighbours {'untouched' if clean else 'WRITTEN TO'}")


def rounded(check: Check) -> None:
    """8 and 16 bits, and bfloat16 rounded stochastically: to the bit those of the definition and of the CPU kernel."""
    shapes = [(3, 65)] if check.dry else [(64, 65), (300, 257), (4096,), (5001,), (17, 1024), (129, 127)]
    single, bf16, half = torch.float32, torch.bfloat16, torch.float16
    formats = [Format(8, block, False) for block in (64, 256, 2048)] + [Format(16, 256, False)]
    kinds = [(dtype, format) for format in formats for dtype in (single, bf16, half)]
    kinds += [(bf16, Format(format.bits, format.block_size, True)) for format in formats]
    kinds += [(bf16, Format(32, 256, True))]
    if check.dry:
        kinds = kinds[::4]
    for dtype, format in kinds:
        name = f"{dtype}, {format}"
        if check.skipped_for_time(name):
            return
        kernel = _rounded_run(check, check.device, TRITON, shapes, dtype, format)
        for other, device, backend in (("definition", check.device, REFERENCE), ("CPU kernel", HOST, CPU)):
            if backend.why_not(device, dtype) is None:
                distance = worst(kernel, _rounded_run(check, device, backend, shapes, dtype, format))
                check.say(distance == 0, f"kernel is the {other}: {name}", f"{distance:g} ulp")


def _rounded_run(
    check: Check,
    device: torch.device,
    backend: backends.Backend,
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    format: Format,
) -> Columns:
    """Some steps from nothing: theta, no gradients, m, v and scales."""
    params, scales = columns(device, shapes, dtype)[0], []
    state = {8: torch.uint8, 16: torch.bfloat16, 32: torch.float32}[format.bits]
    moments = [[torch.zeros(p.shape, dtype=state, device=device) for p in params] for _ in range(2)]
    if format.bits == 8:
        scales = [quantization.new_scales(p.shape, format.block_size, device) for p in params]
    assert backend.step_rounded is not None
    for t in range(2 if check.dry else 6):
        grads = columns(device, shapes, dtype, seed=t + 1)[1]
        keys = [97 * t + i for i in range(len(params))]
        backend.step_rounded([RoundedBucket(params, grads, *moments, scales, keys, format, step_scalars(group(), t))])
    return [params, [], *moments, scales]


def recompilation(check: Check) -> None:
    """One kernel for every number: a learning rate of 0, 1 or 16, other sizes and counts of tensors."""
    if check.skipped_when_dry():
        return
    from adopt_hf.backends.triton import kernels

    def compiled() -> int:
        return sum(len(cache[0]) for cache in kernels.update.device_caches.values())

    counts = []
    for lr in (1e-3, 0.0, 1.0, 16.0, 0.5):
        for tensors in (1, 2, 16, 17):
            TRITON.step([Bucket(*columns(check.device, [(33,)] * tensors), step_scalars(group(lr=lr), T))])
            counts.append(compiled())
    check.say(counts[-1] == counts[0], "no kernel is compiled for another number", f"{counts[0]}, then {counts[-1]}")


def huge(check: Check) -> None:
    """Tensors of 2^31 + 5 elements, beyond 32-bit indices."""
    if check.skipped_when_dry():
        return
    n, ends = 2**31 + 5, 4099
    for name, backend, bytes_each in (("fused", TRITON, 12), ("foreach", FOREACH, 13)):
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        if free < n * bytes_each + 2**30:
            check.say(None, name, f"only {free / 2**30:.0f} GiB are free")
            continue
        p = torch.zeros(n, dtype=torch.bfloat16, device=check.device)
        g, m, v = torch.zeros_like(p), torch.zeros(n, device=check.device), torch.ones(n, device=check.device)
        small = columns(check.device, [(ends,)], torch.bfloat16)
        for whole, part in zip((p, g, m, v), small, strict=True):
            whole[-ends:].copy_(part[0])
            whole[:ends].copy_(part[0])
        REFERENCE.step([Bucket(*small, step_scalars(group(), T))])
        backend.step([Bucket([p], [g], [m], [v], step_scalars(group(), T))])
        check.synchronize()
        ok = abs(float(v[2**31 - 3 - ends]) - 0.9999) < 1e-6 and bool((m[5000:6000] == 0).all())
        for whole, part in ((p, small[0]), (m, small[2]), (v, small[3])):
            close = {"rtol": 2e-2 if whole is p else 1e-5, "atol": 1e-6}
            ok &= all(torch.allclose(end.float(), part[0].float(), **close) for end in (whole[:ends], whole[-ends:]))
        check.say(ok, f"{name}, {n} elements")
        del p, g, m, v
    torch.cuda.empty_cache()
