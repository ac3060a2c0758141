"""The tables that are made of the kept results of the experiments."""

import json
from collections.abc import Callable

from experiments.harness import runs
from experiments.low_bits import run as low_bits
from experiments.low_bits import state_formats
from experiments.paper import evidence
from experiments.step import report, results
from experiments.table import load


def formats() -> str:
    return state_formats.table(json.loads(state_formats.RESULTS.read_text(encoding="utf-8")))


def fewer_bits() -> str:
    return low_bits.report(runs.lines(low_bits.RESULTS))


def steps() -> str:
    return report.render(results.read_all(results.FOLDER))


def claims() -> str:
    """Return the paper's claims, and each experiment with its table. experiments.paper.evidence draws the plots."""
    found = [(module, runs.kept(module.NAME)) for module in load()]
    return evidence.text(found, evidence.PAGE.with_suffix("").name)


TEXTS: dict[str, Callable[[], str]] = {"tables": steps, "low bits": fewer_bits, "formats": formats, "results": claims}
