"""What an experiment says of the paper: a claim, the paper's number and ours, and a verdict."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

Verdict = Literal["reproduced", "not at this scale", "contradicted"]


class Claim(NamedTuple):
    """One row of docs/evidence.md."""

    claim: str  # in a sentence
    paper: str  # where the paper says so, with its number
    ours: str  # our number, with its spread
    conditions: str  # the model, the data, the steps, the seeds
    verdict: Verdict


def against(better: Sequence[float], worse: Sequence[float]) -> Verdict:
    """On a claim that the numbers `better` are lower than `worse`, from seeds of each (Welch's 95 % interval).

    Reproduced if the interval of the difference of the means is below 0, contradicted if it is above, else not at this
    scale; so too if there are fewer than two numbers of each, or if not all are finite.
    """
    if min(len(better), len(worse)) < 2 or not all(map(math.isfinite, [*better, *worse])):
        return "not at this scale"
    if statistics.variance(better) == statistics.variance(worse) == 0:
        low = high = statistics.fmean(better) - statistics.fmean(worse)
    else:
        from scipy.stats import ttest_ind

        low, high = ttest_ind(better, worse, equal_var=False).confidence_interval(0.95)
    if high < 0:
        return "reproduced"
    return "contradicted" if low > 0 else "not at this scale"


def interval(values: Sequence[float], form: str) -> str:
    """The mean and the half-width of its 95 % interval (Student's t); 'diverged' if one is not finite."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "-"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):{form}} ± {half:{form}}"
