"""Paired differences by seed with Student's intervals: the one rule by which losses are compared.

Two runs of one seed have the data order and, where the shapes allow, the initial weights in common, so what the seed
does to both cancels in their difference. A difference is below 0 if its 95 % interval is.

>>> losses = {"ADOPT": {0: 3.1, 1: 3.3, 2: 3.2}, "AdamW": {0: 3.2, 1: 3.5, 2: 3.3}}
>>> difference(losses["ADOPT"], losses["AdamW"]).text()
'-0.133 ± 0.143 (3 pairs)'
"""

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """The mean difference of `n` pairs, and the half-width `half` of its 95 % interval.

    `half` is infinite for fewer than two pairs, and both are NaN if a number is not finite: a run diverged.
    """

    mean: float
    half: float
    n: int

    @property
    def below(self) -> bool:
        """Whether the whole interval is below 0."""
        return self.mean + self.half < 0

    @property
    def above(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.mean - self.half > 0

    def text(self, form: str = ".3f") -> str:
        """Return '-0.133 ± 0.143 (3 pairs)'. One pair has no interval; if a run diverged, the text says so."""
        if self.n == 0:
            return "no pairs"
        pairs = f"({self.n} pair{'s' if self.n > 1 else ''})"
        if math.isnan(self.mean):
            return f"diverged {pairs}"
        if math.isinf(self.half):
            return f"{self.mean:+{form}} {pairs}"
        return f"{self.mean:+{form}} ± {self.half:{form}} {pairs}"


@functools.cache
def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """Return t such that Student's distribution of `df` degrees of freedom has `confidence` between -t and t.

    Raises:
        ValueError: If df is below 1, or confidence is not inside (0, 1).
    """
    if df < 1 or not 0 < confidence < 1:
        raise ValueError(f"needs df >= 1 and confidence inside (0, 1); got {df=}, {confidence=}")
    low, high = 0.0, math.pi / 2
    while (angle := (low + high) / 2) not in (low, high):
        low, high = (angle, high) if _within(angle, df) < confidence else (low, angle)
    return math.sqrt(df) * math.tan(angle)


def _within(angle: float, df: int) -> float:
    """Return the probability that |t| of Student's distribution is below sqrt(df) * tan(angle).

    It is the finite sum for integer degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = df % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(1, df // 2 + 1):
        total += term
        term *= square * (2 * k - 1 + odd) / (2 * k + odd)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Return the half-width of the interval of the mean of `values`; infinite for fewer than two of them."""
    if len(values) < 2:
        return math.inf
    return t_quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))


def difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = CONFIDENCE, resolution: float = 0.0
) -> Difference:
    """Compare two {seed: loss} over the seeds that both have: the mean of ours less theirs, with its interval.

    Args:
        ours: Losses by seed.
        theirs: Losses by seed.
        confidence: The share of intervals that cover the truth.
        resolution: The unit of the losses, such as one image of a test set. Equal pairs do not prove a scatter of 0:
            the scatter is at least that of rounding both losses.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    pairs = [ours[seed] - theirs[seed] for seed in seeds]
    if not pairs:
        return Difference(0.0, math.inf, 0)
    if not all(math.isfinite(loss) for seed in seeds for loss in (ours[seed], theirs[seed])):
        return Difference(math.nan, math.nan, len(pairs))
    half = half_width(pairs, confidence)
    if len(pairs) > 1:
        rounding = resolution / math.sqrt(6)
        half = max(half, t_quantile(len(pairs) - 1, confidence) * rounding / math.sqrt(len(pairs)))
    return Difference(statistics.fmean(pairs), half, len(pairs))
