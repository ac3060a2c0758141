"""Stochastic rounding: the mean of many roundings is the value, and random bits are those of their key alone."""

import pytest
import torch

from adopt_hf.state.rounding import key, random_bits, to_bfloat16

VALUES = torch.tensor([1.0, 1.001, -1.001, 3e-39, 1e-20, 123456.7, -0.3, 0.0, 2.0**-133])


def test_the_mean_is_the_value() -> None:
    n = 2**16
    for value in VALUES:
        x = value.repeat(n)
        rounded = to_bfloat16(x, random_bits(key((7,)), n)[0]).double()
        below, above = rounded.min(), rounded.max()
        assert below <= value.double() <= above
        gap = (above - below).item()
        assert gap <= abs(value.item()) * 2.0**-7 + 2.0**-133
        assert abs(rounded.mean().item() - value.double().item()) <= 5 * gap / 2 / n**0.5  # five standard errors
        assert abs(x.bfloat16().double().mean() - value.double()) <= gap


def test_nearest_rounding_would_be_told_apart() -> None:
    x = torch.full((2**16,), 1.001)
    assert abs(x.bfloat16().double().mean() - 1.001) > 5 * 2.0**-7 / 2 / 2**8


def test_what_is_no_number_stays() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38])
    rounded = to_bfloat16(x, torch.full((4,), 0xFFFF))
    assert rounded[0] == torch.inf
    assert rounded[1] == -torch.inf
    assert rounded[2].isnan()
    assert rounded[3] == torch.inf  # beyond the largest, as to nearest


def test_above_zero_stays_above_zero() -> None:
    x = torch.tensor([1e-45, 1e-41, 0.0])
    assert (to_bfloat16(x, torch.zeros(3, dtype=torch.int64)) == 0).all()
    assert (to_bfloat16(x, torch.zeros(3, dtype=torch.int64), above_zero=True) > 0).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "numbers", [(0, 0), (1, 0), (0, 1), (0, 0, 0), (2**40, 0), (2**33,), (3,), (2**62 + 3,), (-5,)]
)
def test_keys_differ(numbers: tuple[int, ...]) -> None:
    others = [(0, 0), (1, 0), (0, 1), (0, 0, 0), (2**40, 0), (2**33,), (3,), (2**62 + 3,), (-5,)]
    assert key(numbers) == key(numbers)
    assert 0 <= key(numbers) < 2**32
    assert [key(other) for other in others].count(key(numbers)) == 1


def test_bits_are_even_and_independent_from_step_to_step() -> None:
    n, steps = 256, 4000
    bits = torch.stack([random_bits(key((0, 3, t)), n)[0] for t in range(steps)]).double() / 2**32
    of_elements = bits.mean(0)  # over the steps
    assert (of_elements - 0.5).abs().max() < 5 / (12 * steps) ** 0.5
    centred = bits - 0.5
    successive = (centred[1:] * centred[:-1]).mean(0) * 12  # correlation of an element's bits with those of a step ago
    assert successive.abs().max() < 5 / steps**0.5
    high, low = torch.stack([random_bits(key((0, 3, t)), n)[0] for t in range(steps)]), None
    low = (high & 0x7FF).double() / 2**11 - 0.5
    assert (low * centred).mean(0).abs().max() * 12 < 5 / steps**0.5  # what v is rounded with, and what m is


def test_two_numbers_of_an_element_are_unrelated() -> None:
    first, second = torch.stack([torch.stack(random_bits(key((t,)), 16)) for t in range(4000)], dim=1)
    a, b = (second & 0xFFFF).double() / 2**16 - 0.5, first.double() / 2**32 - 0.5
    assert (a * b).mean(0).abs().max() * 12 < 5 / 4000**0.5
