"""The rule of spikes on made-up curves."""

import math
import random
from typing import Any

import pytest

from adopt_hf.commands.compare.spikes import HEIGHT, smoothed, spikes, standard_error
from tests.support.curves import FALLING, with_bump


def test_a_falling_curve_has_no_spike() -> None:
    found = spikes(FALLING)
    assert found == (0, 0, 0.0, HEIGHT)


def test_a_bump_is_one_spike_as_long_as_it_is_above() -> None:
    found = spikes(with_bump(2.0))
    assert found.count == 1
    assert found.highest == pytest.approx(2.0, abs=0.1)
    # Of 10 losses 3 of the bump bring the mean up by 0.6: in after 3, out when fewer than 3 are left.
    assert found.steps == pytest.approx(30 + 10 - 2 * 3 + 1, abs=2)


@pytest.mark.parametrize(("height", "count"), [(0.4, 0), (0.6, 1)])
def test_only_what_is_higher_than_the_bar_counts(height: float, count: int) -> None:
    assert spikes(with_bump(height)).count == count


def test_two_bumps_are_two_spikes() -> None:
    once = with_bump(2.0, start=60, length=20)
    twice = [a + b - c for a, b, c in zip(once, with_bump(2.0), FALLING, strict=True)]
    assert spikes(twice).count == 2


def test_one_bad_batch_is_none() -> None:
    assert spikes(with_bump(3.0, length=1)).count == 0


def test_a_loss_that_is_not_finite_is_a_spike() -> None:
    losses: list[float | None] = list(FALLING)
    losses[150] = None
    assert spikes(losses).count == 1
    assert spikes(losses).steps == 10
    assert spikes([*FALLING, *[None] * 50])[:3] == (1, 50, math.inf)
    assert spikes([None] * 20).count == 1


def test_noise_of_small_batches_is_none_but_a_spike_above_it_is() -> None:
    rng = random.Random(0)
    noise = [rng.gauss(0, 0.5) for _ in FALLING]
    noisy = [loss + n for loss, n in zip(FALLING, noise, strict=True)]
    assert standard_error(noisy) == pytest.approx(0.5 / math.sqrt(10), rel=0.2)
    assert spikes(noisy, errors=0).highest > HEIGHT, "the plain height must be too low for this test to say anything"
    assert spikes(noisy).count == 0
    assert spikes([loss + n for loss, n in zip(with_bump(3.0), noise, strict=True)]).count == 1


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        ([1.0] * 9, {}, "9 losses are fewer than a window of 10"),
        (FALLING, {"window": 0}, "window must be at least 1"),
        (FALLING, {"height": 0}, "height above 0"),
        (FALLING, {"errors": -1}, "errors not negative"),
    ],
)
def test_bad_arguments(losses: list[float], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spikes(losses, **options)


def test_smoothed() -> None:
    assert smoothed([1.0, 3.0, 5.0], window=2) == [2.0, 4.0]
    assert smoothed([1.0, None, 5.0, 7.0], window=2) == [math.inf, math.inf, 6.0]
