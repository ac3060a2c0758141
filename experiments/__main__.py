"""Run an experiment, list them all, or write the pages from the kept results.

python -m experiments NAME [--quick | --full] ...    # NAME --help shows the options of one
python -m experiments list
python -m experiments report [--check]               # make docs-numbers
"""

import importlib
import sys
from collections.abc import Sequence

from experiments.table import EXPERIMENTS, Experiment

COMMAND = "python -m experiments"
REPORT = Experiment("nothing: writes the pages from results", "experiments.pages.report", "", "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what `arguments` name; return the exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        print(f"{__doc__}\n{listed()}")
        return 0
    if name == "list":
        print(listed())
        return 0
    row = {**EXPERIMENTS, "report": REPORT}.get(name)
    if row is None:
        print(f"{COMMAND}: error: there is no experiment {name!r}: see `{COMMAND} list`", file=sys.stderr)
        return 2
    module = importlib.import_module(row.module)
    sys.argv = [f"{COMMAND} {name}", *rest]
    if hasattr(module, "main"):
        return module.main() or 0
    from experiments.harness import command

    command.main(module)
    return 0


def listed() -> str:
    """Return a line for each experiment: its name, what it measures, where its numbers are kept, its page."""
    lines = [("NAME", "MEASURES", "RESULTS", "PAGE")]
    lines += [(name, row.measures, row.results or "-", row.page or "-") for name, row in EXPERIMENTS.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
