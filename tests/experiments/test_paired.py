"""Verdicts by paired differences, against simulations: what is no evidence gives no verdict."""

import math
import random
from collections.abc import Sequence

import pytest

from experiments.harness import paired
from experiments.harness.paired import Difference, difference, verdict


def test_a_difference_that_every_seed_has_is_found_where_unpaired_intervals_overlap() -> None:
    theirs = {seed: 3.0 + seed for seed in range(5)}
    ours = {seed: loss - 0.1 - 0.01 * (seed % 2) for seed, loss in theirs.items()}
    assert verdict(difference(ours, theirs)) == "reproduced"
    assert verdict(difference(theirs, ours)) == "contradicted"


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        ({}, {0: 1.0}, "no pairs"),
        ({0: 1.0}, {0: 9.0}, "-8.000 (1 pair)"),
        ({0: 1.0, 1: math.inf}, {0: 9.0, 1: 9.1}, "diverged (2 pairs)"),
        ({0: 1.0, 1: 1.0}, {0: 9.0, 1: math.nan}, "diverged (2 pairs)"),
        ({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}, "+0.000 ± 0.000 (2 pairs)"),
        ({0: 1.0, 1: 3.0}, {0: 2.0, 1: 2.0}, "+0.000 ± 12.706 (2 pairs)"),
    ],
)
def test_what_is_no_evidence_gives_no_verdict(ours: dict[int, float], theirs: dict[int, float], text: str) -> None:
    found = difference(ours, theirs)
    assert verdict(found) == "not at this scale"
    assert found.text() == text


def test_noise_makes_a_verdict_less_likely_never_more() -> None:
    """The rule that this one replaces called a default good if it was behind by less than the noise."""
    assert verdict(Difference(0.1, 0.05, 8)) == "contradicted"
    assert verdict(Difference(0.1, 0.2, 8)) == "not at this scale"


def test_equal_pairs_of_coarse_numbers_are_no_certainty() -> None:
    ours, theirs = {0: 1.0, 1: 1.0, 2: 2.0}, {0: 2.0, 1: 2.0, 2: 3.0}
    assert difference(ours, theirs).half == 0
    found = difference(ours, theirs, resolution=1.0)
    assert found.half == pytest.approx(4.3027 / math.sqrt(6 * 3), rel=1e-3)
    assert verdict(found) == "not at this scale"
    wide = {0: 9.0, 1: -5.0, 2: 0.0}
    assert difference(wide, theirs, resolution=0.1) == difference(wide, theirs)
    assert math.isinf(difference({0: 1.0}, {0: 2.0}, resolution=1.0).half)


def test_all_of_several() -> None:
    assert paired.all_of(["reproduced", "reproduced"]) == "reproduced"
    assert paired.all_of(["reproduced", "not at this scale"]) == "not at this scale"
    assert paired.all_of(["reproduced", "not at this scale", "contradicted"]) == "contradicted"


def simulated(rng: random.Random, means: Sequence[float], seeds: int, scatter: float) -> list[dict[int, float]]:
    of_seed = [rng.gauss(0, 3) for _ in range(seeds)]
    return [{s: mean + of_seed[s] + rng.gauss(0, scatter) for s in range(seeds)} for mean in means]


def test_intervals_cover_what_they_say() -> None:
    rng = random.Random(0)
    covered = {"pairs": 0, "single": 0}
    trials = 2000
    for _ in range(trials):
        cells = simulated(rng, [1.0, 1.5, 9.0], 4, 0.2)
        found = difference(cells[0], cells[1])
        covered["pairs"] += abs(found.mean + 0.5) < found.half
        single = rng.gauss(0, 0.2) - rng.gauss(0, 0.2)  # two more runs of one seed
        covered["single"] += abs(single) < paired.pool(cells).half()
    assert covered["pairs"] / trials == pytest.approx(0.95, abs=0.02)
    assert covered["single"] / trials == pytest.approx(0.95, abs=0.02)


def test_the_pool_is_what_scatters_and_not_what_the_settings_and_seeds_do() -> None:
    rng = random.Random(1)
    found = paired.pool(simulated(rng, [0.0, 5.0, -3.0, 8.0], 400, 0.2))
    assert found.df == 3 * 399
    assert found.deviation == pytest.approx(0.2, rel=0.05)
    assert found.half(3) == pytest.approx(found.half(2) * math.sqrt(1.5))
    exact = [{0: 1.0, 1: 2.0, 5: 0.0}, {0: 4.0, 1: 5.0, 6: 0.0}]
    assert paired.pool(exact) == (0.0, 1)


@pytest.mark.parametrize(("runs", "df", "tabulated"), [(2, 10, 3.151), (5, 14, 4.407), (5, 4, 6.287)])
def test_spreads_are_tukeys(runs: int, df: int, tabulated: float) -> None:
    found = paired.Pool(0.5, df)
    assert found.spread(runs) == pytest.approx(0.5 * tabulated, rel=1e-3)
    if runs == 2:
        assert found.spread(2) == pytest.approx(found.half(2), rel=1e-3)


@pytest.mark.parametrize(
    "cells", [[], [{0: 1.0, 1: 2.0}], [{0: 1.0}, {0: 2.0}], [{0: 1.0, 1: math.inf}, {0: 2.0, 1: 2.0}]]
)
def test_a_pool_without_degrees_tells_nothing(cells: list[dict[int, float]]) -> None:
    assert paired.pool(cells).df == 0
    assert math.isinf(paired.pool(cells).half())
    assert math.isinf(paired.pool(cells).spread(5))
