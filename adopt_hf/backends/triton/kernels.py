# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="untyped-decorator"
"""The GPU kernels of `launch.py`. Importing this module imports Triton, so only `launch.py` imports it.

A launch updates a whole bucket. Each program updates CHUNK elements of one tensor, which it finds in a table on the
device. The table is int64 and has a column for each of the `tensors`, with these rows:

    0 to 3   addresses of theta, g, m and v, whose elements lie in one order without gaps
    4        address of the step count, float32; only for a capturable bucket
    5, 6     the number of elements, and the number of the first chunk

An int32 for each of the `chunks` is the tensor of that chunk. `p_type`, `g_type` and `m_type` are the types of theta,
of g, and of m and v. Numbers are float64 arguments, and are rounded to `m_type` as torch rounds Python's numbers.
"""

import torch
import triton
import triton.language as tl

from adopt_hf.algorithm import least_of

CHUNK = tl.constexpr(16384)  # small chunks fill the device evenly at the end, large ones load fewer addresses
BLOCK = tl.constexpr(1024)  # elements per iteration
WARPS = 4  # two 16-byte loads of each float32 tensor per thread

# Each operation is rounded, as in the definition: no contraction to fused multiply-adds.
OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": False}

# The smallest positive number, and its root.
LEAST_FLOAT, LEAST_DOUBLE = tl.constexpr(least_of(torch.float32)), tl.constexpr(least_of(torch.float64))
ROOT_FLOAT, ROOT_DOUBLE = tl.constexpr(LEAST_FLOAT.value**0.5), tl.constexpr(LEAST_DOUBLE.value**0.5)

TYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}


@triton.jit
def equations(
    theta, grad, exp_avg, exp_avg_sq, scale, l2, decay, eps, clip, rest1, beta2, rest2, lr,
    m_type: tl.constexpr, coupled: tl.constexpr,
):  # fmt: skip
    """Return theta, m and v after equations (1) to (7). All arguments have the type of the moments.

    Comparisons replace minimum, maximum and clamp, which would lose NaN. Roots and quotients are rounded correctly.
    """
    grad = grad * scale  # (1)
    if coupled:  # with l2 == 0, 0*inf would be NaN
        grad = grad + l2 * theta
    new = exp_avg_sq == 0  # (2)
    theta = theta * decay  # (3)
    least: tl.constexpr = LEAST_DOUBLE if m_type == tl.float64 else LEAST_FLOAT  # (4)
    of_least: tl.constexpr = ROOT_DOUBLE if m_type == tl.float64 else ROOT_FLOAT
    low = tl.where((eps > 0) & (eps < of_least), of_least, eps)
    if m_type == tl.float64:
        root = tl.sqrt(exp_avg_sq)
        u = grad / tl.where(root > low, root, eps)
    else:
        root = tl.sqrt_rn(exp_avg_sq)
        u = tl.div_rn(grad, tl.where(root > low, root, eps))
    u = tl.where(u < -clip, -clip, u)
    u = tl.where(u > clip, clip, u)
    u = tl.where(new, 0.0, u)
    u = tl.where(root < float("inf"), u, float("nan"))  # the root of inf is inf, and of NaN is NaN
    exp_avg = exp_avg + rest1 * (u - exp_avg)  # (5)
    theta = theta - lr * exp_avg  # (6)
    exp_avg_sq = tl.where(new, grad * grad, beta2 * exp_avg_sq + rest2 * grad * grad)  # (7)
    stays = new & (grad == 0)
    exp_avg_sq = tl.where((exp_avg_sq == 0) & (stays == 0), least, exp_avg_sq)
    return theta, exp_avg, exp_avg_sq


@triton.jit
def update_block(
    p, g, m, v, at, mask, scale, l2, decay, eps, clip, rest1, beta2, rest2, lr,
    m_type: tl.constexpr, coupled: tl.constexpr,
):  # fmt: skip
    """Update the elements `at`."""
    theta = tl.load(p + at, mask=mask).to(m_type)
    grad = tl.load(g + at, mask=mask).to(m_type)
    exp_avg = tl.load(m + at, mask=mask)
    exp_avg_sq = tl.load(v + at, mask=mask)
    theta, exp_avg, exp_avg_sq = equations(
        theta, grad, exp_avg, exp_avg_sq, scale, l2, decay, eps, clip, rest1, beta2, rest2, lr, m_type, coupled
    )
    tl.store(p + at, theta.to(p.dtype.element_ty), mask=mask)  # to nearest, ties to even
    tl.store(m + at, exp_avg, mask=mask)
    tl.store(v + at, exp_avg_sq, mask=mask)


@triton.jit
def update_chunk(
    table, tensors, tensor, scale, l2, decay, eps, clip, rest1, beta2, rest2, lr,
    p_type: tl.constexpr, g_type: tl.constexpr, m_type: tl.constexpr, coupled: tl.constexpr,
):  # fmt: skip
    """Update the chunk of this program, which belongs to column `tensor` of the table."""
    column = table + tensor
    p_address = tl.load(column)
    g_address = tl.load(column + tensors)
    m_address = tl.load(column + 2 * tensors)
    v_address = tl.load(column + 3 * tensors)
    start = (tl.program_id(0) - tl.load(column + 6 * tensors)) * CHUNK  # int64
    count = tl.minimum(tl.load(column + 5 * tensors) - start, CHUNK).to(tl.int32)
    p = p_address.to(tl.pointer_type(p_type)) + start
    g = g_address.to(tl.pointer_type(g_type)) + start
    m = m_address.to(tl.pointer_type(m_type)) + start
    v = v_address.to(tl.pointer_type(m_type)) + start

    scale = tl.full((), scale, m_type)
    l2 = tl.full((), l2, m_type)
    decay = tl.full((), decay, m_type)
    eps = tl.full((), eps, m_type)
    clip = tl.full((), clip, m_type)
    rest1 = tl.full((), rest1, m_type)
    beta2 = tl.full((), beta2, m_type)
    rest2 = tl.full((), rest2, m_type)
    lr = tl.full((), lr, m_type)

    # Loads and stores take 16 bytes if the addresses are divisible by 16 and there is no mask. Those of 16-bit numbers
    # take 8 bytes, so all tensors have the same elements in the same thread. Otherwise threads would exchange numbers
    # through shared memory, with barriers.
    aligned = ((p_address | g_address | m_address | v_address) & 15) == 0
    unmasked = tl.where(aligned, count // BLOCK * BLOCK, 0)
    for offset in range(0, unmasked, BLOCK):
        update_block(
            tl.multiple_of(p, 8 if p_type.primitive_bitwidth == 16 else 16),
            tl.multiple_of(g, 8 if g_type.primitive_bitwidth == 16 else 16),
            tl.multiple_of(m, 16),
            tl.multiple_of(v, 16),
            offset + tl.arange(0, BLOCK), None,
            scale, l2, decay, eps, clip, rest1, beta2, rest2, lr, m_type, coupled,
        )  # fmt: skip
    for offset in range(unmasked, count, BLOCK):
        at = offset + tl.arange(0, BLOCK)
        update_block(
            p, g, m, v, at, at < count,
            scale, l2, decay, eps, clip, rest1, beta2, rest2, lr, m_type, coupled,
        )  # fmt: skip


@triton.jit(do_not_specialize=["chunks", "tensors"])
def update(
    table, chunks, tensors,
    scale: tl.float64, l2: tl.float64, decay: tl.float64, eps: tl.float64, clip: tl.float64,
    rest1: tl.float64, beta2: tl.float64, rest2: tl.float64, lr: tl.float64,
    p_type: tl.constexpr, g_type: tl.constexpr, m_type: tl.constexpr, coupled: tl.constexpr,
):  # fmt: skip
    """Update a bucket with the numbers of `StepScalars`. `rest1` is 1 - beta1, and `rest2` is 1 - beta2."""
    update_chunk(
        table, tensors, tl.load(chunks + tl.program_id(0)),
        scale, l2, decay, eps, clip, rest1, beta2, rest2, lr, p_type, g_type, m_type, coupled,
    )  # fmt: skip


@triton.jit
def takes_part(t, observed, found_inf):
    """Return whether a tensor takes part in this step (8). `found_inf` points to 0 if nothing overflows."""
    go = ((t > 0) | (observed > 0)).to(tl.int32)
    if found_inf is not None:
        go = go * (tl.load(found_inf) == 0).to(tl.int32)
    return go > 0


@triton.jit(do_not_specialize=["chunks", "tensors", "observed"])
def observe(table, chunks, tensors, observed, g_type: tl.constexpr):
    """Set `observed` (int32 per tensor, 0 before) where t == 0 and the gradient is not all zero. NaN is not zero."""
    tensor = tl.load(chunks + tl.program_id(0))
    column = table + tensor
    t = tl.load(tl.load(column + 4 * tensors).to(tl.pointer_type(tl.float32)))
    if t == 0:
        start = (tl.program_id(0) - tl.load(column + 6 * tensors)) * CHUNK
        count = tl.minimum(tl.load(column + 5 * tensors) - start, CHUNK).to(tl.int32)
        g = tl.load(column + tensors).to(tl.pointer_type(g_type)) + start
        seen = tl.zeros((BLOCK,), tl.int32)
        for offset in range(0, count, BLOCK):
            at = offset + tl.arange(0, BLOCK)
            seen |= (tl.load(g + at, mask=at < count, other=0.0) != 0).to(tl.int32)
        if tl.max(seen, 0) > 0:
            tl.store(observed + tensor, 1)


@triton.jit(do_not_specialize=["chunks", "tensors", "observed"])
def update_capturable(
    table, chunks, tensors, observed, grad_scale, found_inf, lr_tensor,
    lr: tl.float64, sign: tl.float64, l2: tl.float64, decoupled: tl.float64, eps: tl.float64, clip_exp: tl.float64,
    beta1: tl.float64, beta2: tl.float64, warmup: tl.float64,
    p_type: tl.constexpr, g_type: tl.constexpr, m_type: tl.constexpr, coupled: tl.constexpr, clipped: tl.constexpr,
):  # fmt: skip
    """Update a capturable bucket. The numbers are those of `algorithm.capturable_scalars`, in float64 from t.

    `grad_scale`, `found_inf` and `lr_tensor` point to a number or are None. `decoupled` is the decoupled weight decay
    or 0, and `warmup` the exponent of beta2_warmup or 0.
    """
    tensor = tl.load(chunks + tl.program_id(0))
    t = tl.load(tl.load(table + 4 * tensors + tensor).to(tl.pointer_type(tl.float32))).to(tl.float64)
    if takes_part(t, tl.load(observed + tensor), found_inf):
        scale = tl.full((), sign, tl.float64)
        if grad_scale is not None:
            scale = scale / tl.load(grad_scale).to(tl.float64)
        rate = tl.full((), lr, tl.float64)
        if lr_tensor is not None:
            rate = tl.load(lr_tensor).to(tl.float64)
        decay = tl.where(t > 0, 1.0 - rate * decoupled, 1.0)
        clip = tl.full((), float("inf"), tl.float64)
        if clipped:  # t**clip_exp; the logarithm of 0 is -inf, and times an exponent of 0 it would be NaN
            exponent = tl.full((), clip_exp, tl.float64)
            clip = tl.where(exponent == 0, 1.0, tl.exp2(exponent * tl.log2(t)))
        exponent = tl.full((), warmup, tl.float64)
        power = tl.where(exponent == 1, t + 1.0, tl.exp2(exponent * tl.log2(t + 1.0)))
        mean = 1.0 - 1.0 / power
        beta2_t = tl.full((), beta2, tl.float64)
        beta2_t = tl.where((exponent > 0) & (mean < beta2_t), mean, beta2_t)
        update_chunk(
            table, tensors, tensor, scale, l2, decay, eps, clip, 1.0 - beta1, beta2_t, 1.0 - beta2_t, rate,
            p_type, g_type, m_type, coupled,
        )  # fmt: skip


@triton.jit(do_not_specialize=["tensors", "observed"])
def count(table, tensors, observed, found_inf):
    """Count the step of BLOCK tensors (8), and reset `observed`."""
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = tensor < tensors
    steps = tl.load(table + 4 * tensors + tensor, mask=mask, other=0).to(tl.pointer_type(tl.float32))
    t = tl.load(steps, mask=mask, other=0.0)
    go = takes_part(t, tl.load(observed + tensor, mask=mask, other=0), found_inf)
    tl.store(steps, t + 1.0, mask=mask & go)
    tl.store(observed + tensor, 0, mask=mask)


INTERPRETED = not isinstance(update, triton.JITFunction)  # by Triton's interpreter, on CPU tensors
