"""Paired differences by seed with Student's intervals: the one rule by which losses are compared.

Two runs of one seed have the data order and, where the shapes allow, the initial weights in common, so what the seed
does to both cancels in their difference. A difference is below 0 if its 95 % interval is.

>>> losses = {"ADOPT": {0: 3.1, 1: 3.3, 2: 3.2}, "AdamW": {0: 3.2, 1: 3.5, 2: 3.3}}
>>> difference(losses["ADOPT"], losses["AdamW"]).text()
'-0.133 ± 0.143 (3 pairs)'
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.harness.claims import Verdict

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


def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """Return t such that Student's distribution of `df` degrees of freedom has `confidence` between -t and t.

    Raises:
        ValueError: If df is below 1, or confidence is not inside (0, 1).
    """
    if df < 1 or not 0 < confidence < 1:
        raise ValueError(f"needs df >= 1 and confidence inside (0, 1); got {df=}, {confidence=}")
    from scipy.stats import t  # a second to import

    return float(t.ppf((1 + confidence) / 2, df))


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Return the half-width of the interval of the mean of `values`; infinite for fewer than two of them."""
    if len(values) < 2:
        return math.inf
    return t_quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))


def interval(values: Sequence[float], form: str) -> str:
    """Return the mean and the half-width of its 95 % interval, or 'diverged' if one of the values is not finite."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "-"
    return f"{statistics.fmean(values):{form}} ± {half_width(values):{form}}"


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


def verdict(found: Difference) -> Verdict:
    """Judge a claim that ours is lower: reproduced if the interval is below 0, contradicted if it is above.

    Else "not at this scale", which is no evidence of equality; so too for fewer than two pairs, or if a run diverged.
    """
    if found.below:
        return "reproduced"
    return "contradicted" if found.above else "not at this scale"


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Judge a claim of several parts: reproduced if all are, contradicted if one is."""
    if "contradicted" in verdicts:
        return "contradicted"
    return "reproduced" if set(verdicts) == {"reproduced"} else "not at this scale"


class Pool(NamedTuple):
    """The scatter of a run's loss without its seed's effect: the standard deviation, and its degrees of freedom."""

    deviation: float
    df: int

    def half(self, runs: float = 2, confidence: float = CONFIDENCE) -> float:
        """Return the half-width for a sum or difference of `runs` single runs of one seed; infinite without degrees."""
        if self.df < 1:
            return math.inf
        return t_quantile(self.df, confidence) * self.deviation * math.sqrt(runs)

    def spread(self, runs: int, confidence: float = CONFIDENCE) -> float:
        """Return what the highest less the lowest of `runs` single runs stays below if nothing tells them apart.

        It is Tukey's studentized range, and holds for whichever two of them are picked. Infinite without degrees.
        """
        if self.df < 1:
            return math.inf
        from scipy.stats import studentized_range

        return float(studentized_range.ppf(confidence, runs, self.df)) * self.deviation


def pool(cells: Sequence[Mapping[int, float]]) -> Pool:
    """Estimate from several settings, {seed: loss} each, what a single run scatters by, the seed's own effect removed.

    Use it where a grid has one run a cell: two cells of one seed differ by more than `pool(...).half()`, or they
    cannot be told apart. It is the residual of the additive model setting + seed over the seeds that all have, and
    takes the scatter for the same in all settings.
    """
    common = set.intersection(*(set(cell) for cell in cells)) if cells else set()
    seeds = sorted(seed for seed in common if all(math.isfinite(cell[seed]) for cell in cells))
    if len(cells) < 2 or len(seeds) < 2:
        return Pool(math.nan, 0)
    df = (len(cells) - 1) * (len(seeds) - 1)
    of_seed = {seed: statistics.fmean(cell[seed] for cell in cells) for seed in seeds}
    overall = statistics.fmean(of_seed.values())
    squares = 0.0
    for cell in cells:
        mean = statistics.fmean(cell[seed] for seed in seeds)
        squares += sum((cell[seed] - mean - of_seed[seed] + overall) ** 2 for seed in seeds)
    return Pool(math.sqrt(squares / df), df)
