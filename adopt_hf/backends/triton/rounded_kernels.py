# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code="untyped-decorator"
"""The GPU kernel with rounded results: the formats of `quantization` and the random bits of `rounding`.

Importing this module imports Triton, so only `launch.py` imports it. The kernel reads, updates and writes each element
and the three numbers of each block once. A launch updates a whole bucket. Each program updates CHUNK elements of one
tensor, one tile of whole blocks per iteration. The table is like that of `kernels`, with these rows:

    0 to 4   addresses of theta, g, m, v and the scales, whose elements lie in the order of their indices
    5        the key of the random bits
    6, 7     the number of elements, and the number of the first chunk
    8        the number of columns: the elements of a row, which blocks do not cross

`p_type` and `g_type` are the types of theta and g. m and v are float32, bfloat16 or codes, according to `bits`.
"""

import triton
import triton.language as tl

from adopt_hf.backends.triton.kernels import equations
from adopt_hf.state import quantization, rounding

CHUNK = tl.constexpr(8192)  # elements: four blocks of the largest size
OF_WARP = 256  # elements of a warp, eight per thread
UNBLOCKED = 256  # elements of a block without codes, where the value does not change results

GOLDEN = tl.constexpr(rounding.GOLDEN)
ONE, NOT_FINITE = tl.constexpr(quantization.ONE), tl.constexpr(quantization.NOT_FINITE)
QUIET_NAN = tl.constexpr(0x7FC00000)
TINIEST, TINY = tl.constexpr(quantization.TINIEST), tl.constexpr(quantization.TINY)
LAST, INF = tl.constexpr(quantization.LAST), tl.constexpr(quantization.INF)
NAN = tl.constexpr(quantization.NAN)
FEWEST_BITS, MOST_BITS = tl.constexpr(quantization.FEWEST_BITS), tl.constexpr(quantization.MOST_BITS)
M_SHIFT = tl.constexpr(23 - quantization.M_BITS)
M_TOP, M_NOT_FINITE = tl.constexpr(quantization.M_TOP), tl.constexpr(quantization.M_NOT_FINITE)
PART_OF_TOP = tl.constexpr(1 / quantization.M_TOP)


def options(block_size: int) -> dict[str, int | bool]:
    """Return the options of a launch.

    A block of up to 256 elements belongs to one warp, whose threads need no barriers. Without `maxnreg` the compiler
    takes up to twice as many registers, and a multiprocessor has room for half as many warps. With fewer it spills.
    """
    warps = max(1, block_size // OF_WARP)
    return {"num_warps": warps, "maxnreg": 96 if warps == 1 else 128, "enable_fp_fusion": False}


@triton.jit
def mixed(x):
    """Return the hash of `rounding`, of uint32."""
    x = x * 0x7FEB352D
    return x ^ (x >> 15)


@triton.jit
def to_bfloat16(x, random, above_zero: tl.constexpr):
    """Return x rounded stochastically. The upper bits identify a NaN of arithmetic, and inf has no lower bits."""
    word = x.to(tl.uint32, bitcast=True)
    is_finite = (word & 0x7FFFFFFF) < NOT_FINITE
    rounded = (word + tl.where(is_finite, random & 0xFFFF, 0)) >> 16
    if above_zero:
        rounded = tl.where((rounded == 0) & (x > 0), 1, rounded)
    return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def decode_exp_avg(code, scale):
    """Return m of codes (uint32)."""
    q = code & 0x7F
    size = (((q << M_SHIFT) + ONE).to(tl.float32, bitcast=True) - 1.0) * scale
    word = tl.where(q == M_NOT_FINITE, QUIET_NAN, size.to(tl.uint32, bitcast=True))
    return (word | ((code & 0x80) << 24)).to(tl.float32, bitcast=True)


@triton.jit
def decode_exp_avg_sq(code, scale, shift):
    """Return v of codes (uint32)."""
    exp_avg_sq = (((code - 1) << shift) + ONE).to(tl.float32, bitcast=True) * scale
    exp_avg_sq = tl.where(code == 0, 0.0, exp_avg_sq)
    return tl.where(code < INF, exp_avg_sq, tl.where(code == INF, float("inf"), float("nan")))


@triton.jit
def encode_exp_avg(exp_avg, random):
    """Return the codes of m, and the scale of each block."""
    word = exp_avg.to(tl.uint32, bitcast=True)
    size = word & 0x7FFFFFFF
    is_finite = size < NOT_FINITE
    size = tl.where(is_finite, size, 0)
    largest = tl.max(size, 1).to(tl.float32, bitcast=True)
    some = largest >= TINIEST
    inverse = tl.where(some, tl.div_rn(tl.full(largest.shape, 1.0, tl.float32), largest) * M_TOP, 0.0)
    scaled = (1.0 + size.to(tl.float32, bitcast=True) * inverse[:, None]).to(tl.uint32, bitcast=True)
    q = (scaled - ONE + ((random & 0x7FF) << (M_SHIFT - 11))) >> M_SHIFT
    code = tl.where(is_finite, q | ((word >> 24) & 0x80), M_NOT_FINITE)
    return code, tl.where(some, largest * PART_OF_TOP, 0.0)


@triton.jit
def moved_grid(scale, bits, most, least):
    """Return the scale of v, moved by a power of two, and the bits for the largest and smallest v (as words)."""
    high = (most >> 23).to(tl.int32)
    octaves = high - (least >> 23).to(tl.int32) + 2
    chosen = tl.full(bits.shape, FEWEST_BITS, tl.int32)
    for more in tl.static_range(FEWEST_BITS + 1, MOST_BITS + 1):
        chosen = tl.where(octaves + (bits < more).to(tl.int32) <= ((LAST - 2) >> more), more, chosen)
    old = scale.to(tl.int32, bitcast=True)
    moved = (old & 0x7FFFFF) + ((high + 1 - (tl.full(bits.shape, LAST - 2, tl.int32) >> chosen)) << 23)
    moved = tl.where(high > 0, moved, old)
    return tl.where(moved < TINY, TINY, moved).to(tl.float32, bitcast=True), chosen


@triton.jit
def encode_exp_avg_sq(exp_avg_sq, scale, bits, random):
    """Return the codes of v, and the scale and the bits of each block."""
    word = exp_avg_sq.to(tl.uint32, bitcast=True)
    of_range = tl.where(word < NOT_FINITE, word, 0)
    below = tl.min(of_range - 1, 1)  # the predecessor of the smallest positive v
    least = tl.where(below < NOT_FINITE, below + 1, NOT_FINITE)
    scale, bits = moved_grid(scale, bits, tl.max(of_range, 1), least)
    shift = (23 - bits)[:, None].to(tl.uint32)
    over_scale = exp_avg_sq * tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)[:, None]
    over_scale = tl.where(over_scale < 1.0, 1.0, over_scale).to(tl.uint32, bitcast=True)
    q = ((over_scale - ONE + (random >> (32 - shift))) >> shift) + 1
    q = tl.where(word == 0, 0, q)
    return tl.where(word < NOT_FINITE, q, tl.where(word == NOT_FINITE, INF, NAN)), scale, bits


@triton.jit
def update_tile(
    p, g, m, v, place, key, at, length, scales, live,
    scale, l2, decay, eps, clip, rest1, beta2, rest2, lr,
    coupled: tl.constexpr, bits: tl.constexpr, block_size: tl.constexpr, round_param: tl.constexpr,
    together: tl.constexpr,
):  # fmt: skip
    """Update a tile of blocks: `length` elements of each from `at` on, and the numbers of `live` blocks at `scales`.

    Elements beyond the length are zero before and after, like the padding of the definition. One load or store takes
    `together` elements. Their address is divisible by their size, and all or none of them are within the length.
    """
    inside = tl.arange(0, block_size)[None, :]
    mask = tl.max_constancy(inside < length[:, None], (1, together))
    place = (place + at.to(tl.uint32))[:, None] + inside.to(tl.uint32)
    p = tl.multiple_of((p + at)[:, None] + inside, (1, together * p.dtype.element_ty.primitive_bitwidth // 8))
    g = tl.multiple_of((g + at)[:, None] + inside, (1, together * g.dtype.element_ty.primitive_bitwidth // 8))
    m = tl.multiple_of((m + at)[:, None] + inside, (1, together * m.dtype.element_ty.primitive_bitwidth // 8))
    v = tl.multiple_of((v + at)[:, None] + inside, (1, together * v.dtype.element_ty.primitive_bitwidth // 8))
    theta = tl.load(p, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(g, mask=mask, other=0.0).to(tl.float32)
    exp_avg = tl.load(m, mask=mask, other=0)
    exp_avg_sq = tl.load(v, mask=mask, other=0)
    if bits == 8:
        v_scale = tl.load(scales + 1, mask=live, other=1.0)
        v_bits = tl.load(scales + 2, mask=live, other=2.0).to(tl.int32)
        exp_avg = decode_exp_avg(exp_avg.to(tl.uint32), tl.load(scales, mask=live, other=0.0)[:, None])
        shift = (23 - v_bits)[:, None].to(tl.uint32)
        exp_avg_sq = decode_exp_avg_sq(exp_avg_sq.to(tl.uint32), v_scale[:, None], shift)
    theta, exp_avg, exp_avg_sq = equations(
        theta, grad, exp_avg.to(tl.float32), exp_avg_sq.to(tl.float32),
        scale, l2, decay, eps, clip, rest1, beta2, rest2, lr, tl.float32, coupled,
    )  # fmt: skip
    random = mixed(place ^ key)
    if round_param:
        tl.store(p, to_bfloat16(theta, mixed(random + GOLDEN), False), mask=mask)
    else:
        tl.store(p, theta.to(p.dtype.scalar.element_ty), mask=mask)  # to nearest, ties to even
    if bits == 8:
        m_codes, m_scale = encode_exp_avg(exp_avg, random)
        v_codes, v_scale, v_bits = encode_exp_avg_sq(exp_avg_sq, v_scale * beta2, v_bits, random)
        tl.store(m, m_codes.to(tl.uint8), mask=mask)
        tl.store(v, v_codes.to(tl.uint8), mask=mask)
        tl.store(scales, m_scale, mask=live)
        tl.store(scales + 1, v_scale, mask=live)
        tl.store(scales + 2, v_bits.to(tl.float32), mask=live)
    elif bits == 16:
        tl.store(m, to_bfloat16(exp_avg, random, False), mask=mask)
        tl.store(v, to_bfloat16(exp_avg_sq, random >> 16, True), mask=mask)
    else:
        tl.store(m, exp_avg, mask=mask)
        tl.store(v, exp_avg_sq, mask=mask)


@triton.jit
def stretch(block, count, start_block, of_row, last, block_size: tl.constexpr):
    """Return the starts of a program's blocks, relative to the first, and their lengths: 0 from block `count` on."""
    of_rows = start_block + block.to(tl.uint32)
    rows = of_rows // of_row
    length = tl.where(of_rows - rows * of_row == of_row - 1, last, block_size)
    return block * block_size - rows.to(tl.int32) * (block_size - last), tl.where(block < count, length, 0)


@triton.jit(do_not_specialize=["chunks", "tensors"])
def update_rounded(
    table, chunks, tensors,
    scale: tl.float64, l2: tl.float64, decay: tl.float64, eps: tl.float64, clip: tl.float64,
    rest1: tl.float64, beta2: tl.float64, rest2: tl.float64, lr: tl.float64,
    p_type: tl.constexpr, g_type: tl.constexpr, coupled: tl.constexpr,
    bits: tl.constexpr, block_size: tl.constexpr, round_param: tl.constexpr,
):  # fmt: skip
    """Update a bucket with the numbers of `StepScalars`. `rest1` is 1 - beta1, and `rest2` is 1 - beta2."""
    m_type: tl.constexpr = tl.uint8 if bits == 8 else tl.bfloat16 if bits == 16 else tl.float32
    tile: tl.constexpr = 128 // block_size if block_size < 128 else 1  # blocks per iteration
    column = table + tl.load(chunks + tl.program_id(0))
    p_address = tl.load(column)
    g_address = tl.load(column + tensors)
    m_address = tl.load(column + 2 * tensors)
    v_address = tl.load(column + 3 * tensors)
    scales_address = tl.load(column + 4 * tensors)
    key = tl.load(column + 5 * tensors).to(tl.uint32)
    elements = tl.load(column + 6 * tensors)
    columns = tl.load(column + 8 * tensors)

    # The blocks of this program, and the place of the first. From there on 32 bits are enough for its elements.
    of_row = (columns + block_size - 1) // block_size
    blocks = elements // columns * of_row
    first = (tl.program_id(0) - tl.load(column + 7 * tensors)) * (CHUNK // block_size)  # int64
    count = tl.minimum(blocks - first, CHUNK // block_size).to(tl.int32)
    start_row = first // of_row
    start_block = first - start_row * of_row  # of the row
    start = start_row * columns + start_block * block_size
    p = p_address.to(tl.pointer_type(p_type)) + start
    g = g_address.to(tl.pointer_type(g_type)) + start
    m = m_address.to(tl.pointer_type(m_type)) + start
    v = v_address.to(tl.pointer_type(m_type)) + start
    scales = scales_address.to(tl.pointer_type(tl.float32)) + 3 * first
    place = start.to(tl.uint32)
    last = (columns - (of_row - 1) * block_size).to(tl.int32)  # elements of a row's last block
    of_row = of_row.to(tl.uint32)
    start_block = start_block.to(tl.uint32)

    scale = tl.full((), scale, tl.float32)
    l2 = tl.full((), l2, tl.float32)
    decay = tl.full((), decay, tl.float32)
    eps = tl.full((), eps, tl.float32)
    clip = tl.full((), clip, tl.float32)
    rest1 = tl.full((), rest1, tl.float32)
    beta2 = tl.full((), beta2, tl.float32)
    rest2 = tl.full((), rest2, tl.float32)
    lr = tl.full((), lr, tl.float32)

    # One load or store takes four elements, unless an address or the end of a row is not divisible by four elements.
    by_four = (columns & 3) == 0
    if columns == elements:
        by_four = by_four | (first + count < blocks)
    by_four = by_four & (((p_address | g_address | m_address | v_address) & 15) == 0)
    if by_four:
        for i in range(0, count, tile):
            block = i + tl.arange(0, tile)
            at, length = stretch(block, count, start_block, of_row, last, block_size)
            update_tile(
                p, g, m, v, place, key, at, length, scales + 3 * block, block < count,
                scale, l2, decay, eps, clip, rest1, beta2, rest2, lr, coupled, bits, block_size, round_param, 4,
            )  # fmt: skip
    else:
        for i in range(0, count, tile):
            block = i + tl.arange(0, tile)
            at, length = stretch(block, count, start_block, of_row, last, block_size)
            update_tile(
                p, g, m, v, place, key, at, length, scales + 3 * block, block < count,
                scale, l2, decay, eps, clip, rest1, beta2, rest2, lr, coupled, bits, block_size, round_param, 1,
            )  # fmt: skip
