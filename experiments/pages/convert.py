"""The table of docs/migrate.md: experiments/convert/run.py makes the rows."""

from collections.abc import Callable

from experiments.convert import report
from experiments.convert.run import RESULTS
from experiments.harness import runs

TEXTS: dict[str, Callable[[], str]] = {
    "converted runs": lambda: report.table(runs.lines(RESULTS)),
    "converted runs in words": lambda: report.words(runs.lines(RESULTS)),
}
