"""The 8-bit format: what goes in comes out, on average and to a grid step; v above zero stays so; 2.1 bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adopt_hf.state import quantization
from adopt_hf.state.quantization import (
    FEWEST_BITS,
    LAST,
    MOST_BITS,
    Quantized,
    dequantize,
    encode,
    layout,
    new_scales,
    quantize,
)
from adopt_hf.state.rounding import key, random_bits

SHAPES = [(64, 300), (5000,), (33, 257), (4096,), (20, 3, 100), (700, 7), (2, 128), (1, 4097)]


def moments(shape: tuple[int, ...], octaves: float = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.exp2(torch.empty(shape).uniform_(-octaves, octaves, generator=generator))
    m = torch.randn(shape, generator=generator)
    return m, (torch.randn(shape, generator=generator) * scale) ** 2


@pytest.mark.parametrize("shape", SHAPES)
def test_one_round_trip(shape: tuple[int, ...]) -> None:
    m, v = moments(shape)
    q = quantize(m, v, 256, key((1,)))
    m_back, v_back = dequantize(q, 256)
    where = layout(torch.Size(shape), 256)
    step = torch.exp2(-q.scales[..., 2:])  # of v, relative
    relative = where.blocked(v_back / v - 1)
    low = where.blocked(v) < q.scales[..., 1:2]  # below the grid: raised to its lower end
    assert where.whole(low, m.shape).float().mean() < 0.01
    assert ((relative.abs() <= step * 1.0001) | low).all()
    largest = where.blocked(m).abs().amax(-1, keepdim=True)
    allowed = (where.blocked(m).abs() + largest / quantization.M_TOP) / 16 * 1.001
    assert (where.blocked(m_back - m).abs() <= allowed).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes(shape: tuple[int, ...]) -> None:
    q = quantize(torch.zeros(shape), torch.zeros(shape), 256, 0)
    size, n = sum(t.numel() * t.element_size() for t in q), torch.Size(shape).numel()
    assert size <= 2.1 * n + 12


@pytest.mark.parametrize("columns", [*range(128, 900, 7), 4095, 4097])
def test_bytes_of_odd_rows(columns: int) -> None:
    zeros = torch.zeros(64, columns)
    size = sum(t.numel() * t.element_size() for t in quantize(zeros, zeros, 256, 0))
    assert size <= 2.1 * 64 * columns


@pytest.mark.everyday
def test_the_mean_is_the_value() -> None:
    m, v = moments((8, 300))
    n = 3000
    sums = torch.zeros(2, 8, 300, dtype=torch.float64)
    for i in range(n):
        for total, part in zip(sums, dequantize(quantize(m, v, 256, key((i,))), 256), strict=True):
            total += part
    q = quantize(m, v, 256, 0)
    where = layout(m.shape, 256)
    step = where.whole((torch.exp2(-q.scales[..., 2:])).expand(-1, -1, 256), v.shape) * v
    inside = where.whole((where.blocked(v) >= q.scales[..., 1:2]).expand(-1, -1, 256), v.shape)
    assert inside.float().mean() > 0.98
    assert ((sums[1] / n - v).abs() <= 5.5 * step / 2 / n**0.5 + 1e-6 * v)[inside].all()
    largest = where.whole(where.blocked(m).abs().amax(-1, keepdim=True).expand(-1, -1, 256), m.shape)
    gap = (m.abs() + largest / quantization.M_TOP) / 16
    assert ((sums[0] / n - m).abs() <= 5.5 * gap / 2 / n**0.5 + gap * 2**-11).all()


def test_rounding_to_nearest_would_be_told_apart() -> None:
    """The bound on the mean rejects a rounding without random bits."""
    _, v = moments((8, 300))
    q = quantize(v.sqrt(), v, 256, 0)
    always = encode(v.sqrt(), v, new_scales(v.shape, 256, v.device), 1.0, 256, torch.full(v.shape, 1 << 31))
    back = dequantize(always, 256)[1].double()
    step = torch.exp2(-q.scales[..., 2:]).amin() * v
    assert ((back - v).abs() > 5.5 * step / 2 / 3000**0.5).float().mean() > 0.5


@pytest.mark.everyday
def test_decay_alone_is_exact() -> None:
    """Without gradients v falls by beta2 a step, and no code changes but when the scale moves by a power of two."""
    _, v = moments((4, 256), octaves=1)
    state = quantize(torch.zeros_like(v), v, 256, 1)
    start, factor = dequantize(state, 256)[1].double(), 1.0
    for t in range(2000):
        now = dequantize(state, 256)[1]
        state = encode(
            torch.zeros_like(v),
            now * 0.9999,
            state.scales,
            0.9999,
            256,
            random_bits(key((t,)), v.numel())[0].view(4, 256),
        )
        factor *= 0.9999
    error = (dequantize(state, 256)[1].double() / (start * factor)).log2().abs()
    assert error.max() < 1.01 * torch.log2(1 + torch.exp2(-state.scales[..., 2])).max()
    assert (error < 1e-3).float().mean() > 0.99  # but where the last place of float32 was rounded to a neighbour


def test_zero_means_never_observed_and_nothing_else_becomes_zero() -> None:
    v = torch.zeros(2, 256)
    v[0, ::3] = torch.logspace(-37, 30, 86)
    v[1, 5] = 1e-44
    back = dequantize(quantize(torch.zeros(2, 256), v, 256, 3), 256)[1]
    assert torch.equal(back == 0, v == 0)
    assert (back[0, ::3][-20:] / v[0, ::3][-20:]).log2().abs().max() < 0.5  # the largest are what they were


def test_what_is_no_number() -> None:
    m, v = moments((2, 300))
    m[0, 1], m[0, 2], v[1, 3], v[1, 4] = torch.nan, torch.inf, torch.nan, torch.inf
    m_back, v_back = dequantize(quantize(m, v, 256, 5), 256)
    assert m_back[0, 1].isnan()
    assert not m_back[0, 2].isfinite()
    assert v_back[1, 3].isnan()
    assert v_back[1, 4] == torch.inf
    finite = m.isfinite()
    assert (m_back[finite] - m[finite]).abs().max() < 0.3
    others = v.isfinite()
    assert (v_back[others] / v[others]).log2().abs().max() < 0.5


@given(
    st.lists(st.floats(2.0**-90, 2.0**100, width=32), min_size=1, max_size=200),
    st.integers(0, 2**32 - 1),
    st.sampled_from([64, 256]),
)
@settings(max_examples=200, deadline=None)
def test_any_v_is_kept_or_raised_to_the_grid(values: list[float], random_key: int, block_size: int) -> None:
    v = torch.tensor(values)
    q = quantize(torch.zeros_like(v), v, block_size, random_key)
    back = dequantize(q, block_size)[1]
    bits, scale = q.scales[..., 2], q.scales[..., 1]
    assert ((bits >= FEWEST_BITS) & (bits <= MOST_BITS)).all()
    assert q.exp_avg_sq.max() <= LAST
    where = layout(v.shape, block_size)
    on_grid = torch.maximum(where.blocked(v), scale[..., None])[..., : min(block_size, len(values))]
    got = where.blocked(back)[..., : min(block_size, len(values))]
    mask = where.blocked(torch.ones_like(v))[..., : min(block_size, len(values))] > 0
    assert ((got / on_grid - 1).abs() <= torch.exp2(-bits)[..., None] * 1.0001)[mask].all()
    top = where.blocked(v).amax(-1)
    assert (got.amax(-1) >= top * (1 - 2.0**-FEWEST_BITS)).all()


def test_scales_have_the_rows_of_the_tensor() -> None:
    """A shard of whole rows has the blocks of the whole tensor."""
    m, v = moments((8, 300))
    whole = quantize(m, v, 256, 9)
    for rows in (slice(0, 3), slice(3, 8)):
        part = Quantized(*(t[rows] for t in whole))
        for a, b in zip(dequantize(part, 256), dequantize(whole, 256), strict=True):
            assert torch.equal(a, b[rows])
