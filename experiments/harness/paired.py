"""Verdicts on claims by paired differences, and the scatter of single runs.

The differences and their intervals are those of `adopt-hf compare` (adopt_hf/commands/compare/paired.py).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from adopt_hf.commands.compare.paired import CONFIDENCE, Difference, difference, half_width, t_quantile
from experiments.harness.claims import Verdict

__all__ = [
    "CONFIDENCE",
    "Difference",
    "Pool",
    "all_of",
    "difference",
    "half_width",
    "interval",
    "pool",
    "t_quantile",
    "verdict",
]


def interval(values: Sequence[float], form: str) -> str:
    """Return the mean and the half-width of its 95 % interval, or 'diverged' if one of the values is not finite."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "-"
    return f"{statistics.fmean(values):{form}} ± {half_width(values):{form}}"


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
