"""Interleaved rounds. Each optimizer does one step in each, so that a slow moment of the machine affects all alike."""

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.harness.fresh import one_line


class Times(NamedTuple):
    """The times of one step, in milliseconds."""

    ms: float  # what is compared: wall time on a CPU, time between two events on a GPU
    wall_ms: float  # until all is done
    cpu_ms: float  # process time of all threads
    host_ms: float | None  # until step() returned; on a CPU that is no other time


Round = dict[str, Times]
Quartiles = dict[str, float]


def interleave(
    steps: Mapping[str, Callable[[], Times]], rounds: int, warmup: int, seed: int = 0
) -> tuple[list[Round], dict[str, str]]:
    """Do `warmup` and then `rounds` rounds, each in a random order, because a step feels the one before it.

    Returns:
        The rounds, and the errors of those whose step raised: these are in no round.
    """
    done: list[Round] = []
    errors: dict[str, str] = {}
    shuffled = random.Random(seed)
    for number in range(warmup + rounds):
        times: Round = {}
        for name in shuffled.sample(list(steps), len(steps)):
            if name in errors:
                continue
            try:
                times[name] = steps[name]()
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is its row
                errors[name] = one_line(error)[:500]
        if number >= warmup:
            done.append(times)
    return [{name: times for name, times in r.items() if name not in errors} for r in done], errors


def quartiles(values: list[float]) -> Quartiles | None:
    """Return the quartiles of `values`, or None if there are none."""
    if not values:
        return None
    if len(values) == 1:
        return dict.fromkeys(("q1", "median", "q3"), values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"q1": q1, "median": median, "q3": q3}


def ratio(rounds: list[Round], name: str, to: str, field: str = "ms") -> Quartiles | None:
    """Return the ratio of a time of `name` to that of `to` in the same round."""
    both = [r for r in rounds if name in r and to in r]
    return quartiles([getattr(r[name], field) / getattr(r[to], field) for r in both if getattr(r[to], field) > 0])


def summary(rounds: list[Round], name: str, baseline: str, ours: str, floor: str) -> dict[str, Any]:
    """Return the times of `name` for its row."""
    mine = [r[name] for r in rounds if name in r]
    return {
        **{
            field: quartiles([value for times in mine if (value := getattr(times, field)) is not None])
            for field in Times._fields
        },
        "to_adamw": ratio(rounds, name, baseline),
        "cpu_to_adamw": ratio(rounds, name, baseline, "cpu_ms"),
        "to_ours": ratio(rounds, name, ours),
        "to_floor": ratio(rounds, name, floor),
    }
