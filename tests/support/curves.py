"""Made-up curves of a training loss."""

import math

FALLING = [3 + 4 * math.exp(-step / 30) for step in range(200)]


def with_bump(height: float, start: int = 120, length: int = 30) -> list[float]:
    """Return the falling curve, with a bump."""
    return [loss + height * (start <= step < start + length) for step, loss in enumerate(FALLING)]
