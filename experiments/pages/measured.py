"""The tables that the experiments `step`, `low_bits` and `state_formats` have left in experiments/results."""

import json
from collections.abc import Callable

from experiments.harness import runs
from experiments.low_bits import run as low_bits
from experiments.low_bits import state_formats
from experiments.step import report, results


def formats() -> str:
    return state_formats.table(json.loads(state_formats.RESULTS.read_text(encoding="utf-8")))


def fewer_bits() -> str:
    return low_bits.report(runs.lines(low_bits.RESULTS))


def steps() -> str:
    return report.render(results.read_all(results.FOLDER))


TEXTS: dict[str, Callable[[], str]] = {"tables": steps, "low bits": fewer_bits, "formats": formats}
