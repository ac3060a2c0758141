"""Paired differences: quantiles against tables, and the pairs."""

import math

import pytest

from adopt_hf.commands.compare import paired
from adopt_hf.commands.compare.paired import difference


@pytest.mark.parametrize(("df", "tabulated"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (100, 1.984)])
def test_quantiles_are_those_of_the_tables(df: int, tabulated: float) -> None:
    assert paired.t_quantile(df) == pytest.approx(tabulated, abs=5e-4)
    assert paired.t_quantile(df, 0.9) < paired.t_quantile(df)


@pytest.mark.parametrize(("df", "confidence"), [(0, 0.95), (3, 1.0), (3, 0.0)])
def test_wrong_degrees_and_confidences(df: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="needs df >= 1 and confidence inside"):
        paired.t_quantile(df, confidence)


def test_the_difference_is_over_the_seeds_that_both_have() -> None:
    found = difference({0: 1.0, 1: 2.0, 2: 4.0, 7: 99.0}, {2: 3.0, 1: 2.5, 0: 2.0, 8: -99.0})
    assert found.n == 3
    assert found.mean == pytest.approx(-1 / 6)
    assert found.half == pytest.approx(4.3027 * math.sqrt((0.8333**2 + 0.3333**2 + 1.1667**2) / 2 / 3), rel=1e-3)
    assert found.text() == "-0.167 ± 2.586 (3 pairs)"
