"""A claim of the paper, with the paper's number, ours, and a verdict."""

from typing import Literal, NamedTuple

Verdict = Literal["reproduced", "not at this scale", "contradicted"]


class Claim(NamedTuple):
    """One row of docs/evidence.md."""

    claim: str  # in a sentence
    paper: str  # where the paper says so, with its number
    ours: str  # our number, with its spread
    conditions: str  # the model, the data, the steps, the seeds
    verdict: Verdict
