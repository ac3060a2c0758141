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


def interval(values: Sequence[float], form: str) -> str:
    """The mean and the half-width of its 95 % interval (Student's t); 'diverged' if one is not finite."""
    if not all(map(math.isfinite, values)):
        return "diverged"
    if len(values) < 2:
        return f"{values[0]:{form}}" if values else "-"
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):{form}} ± {half:{form}}"
