"""Spikes of a training loss, counted by a rule.

The loss is smoothed: the mean of the last `WINDOW` = 10 logged losses. A spike begins where the smoothed loss is above
the lowest that it has been by more than `HEIGHT` = 0.5 nats and by more than `ERRORS` = 8 of its standard errors, and
is over when it is not any more. The standard error is that of batches, from the differences of losses in a row (their
median, so that spikes do not count). Batches of few tokens scatter by more than 0.5 nats: over a thousand steps the
highest and the lowest of such means lie 6 to 7 standard errors apart with no spike at all.

A loss that is not finite (None) is in a spike, and so are the windows it is in.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

WINDOW = 10
HEIGHT = 0.5
ERRORS = 8
RULE = (
    f"a spike begins where the mean of the last {WINDOW} logged training losses is above its lowest value so far by "
    f"more than {HEIGHT} nats and than {ERRORS} standard errors (of the batches), and ends when it is not any more"
)
MEDIAN_OF_NORMAL = 0.6745  # of the absolute value, in standard deviations


class Spikes(NamedTuple):
    """`count` of spikes, the `steps` (logged losses) in them, the `highest` rise, the `bar` it is held to."""

    count: int  # type: ignore[assignment]  # a tuple has a method of that name
    steps: int
    highest: float
    bar: float


def smoothed(losses: Sequence[float | None], window: int = WINDOW) -> list[float]:
    """Return the mean of each `window` losses in a row, infinite if one of them is None."""
    values = [math.inf if loss is None else loss for loss in losses]
    return [sum(values[end - window : end]) / window for end in range(window, len(values) + 1)]


def standard_error(losses: Sequence[float | None], window: int = WINDOW) -> float:
    """Return that of a mean of `window` losses, by the scatter of batches; 0 without two finite losses in a row."""
    pairs = itertools.pairwise(losses)
    steps = [abs(after - before) for before, after in pairs if before is not None and after is not None]
    if not steps:
        return 0.0
    return statistics.median(steps) / MEDIAN_OF_NORMAL / math.sqrt(2) / math.sqrt(window)


def spikes(
    losses: Sequence[float | None], window: int = WINDOW, height: float = HEIGHT, errors: float = ERRORS
) -> Spikes:
    """Return the spikes of a curve.

    Raises:
        ValueError: If the window is below 1, the height is not above 0, `errors` is negative, or there are fewer losses
            than in a window.
    """
    if window < 1 or height <= 0 or errors < 0:
        raise ValueError(
            f"window must be at least 1, height above 0 and errors not negative, got {window}, {height} and {errors}"
        )
    if len(losses) < window:
        raise ValueError(f"{len(losses)} losses are fewer than a window of {window}")
    bar = max(height, errors * standard_error(losses, window))
    count, steps, highest, inside, lowest = 0, 0, 0.0, False, math.inf
    for value in smoothed(losses, window):
        rise = math.inf if math.isinf(value) else max(0.0, value - min(lowest, value))
        now = rise > bar
        count, steps, highest, inside = count + (now and not inside), steps + now, max(highest, rise), now
        lowest = min(lowest, value)
    return Spikes(count, steps, highest, bar)
