"""The tables of docs/benchmarks.md out of benchmarks/results: `python -m benchmarks.report`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import options, results, tables
from benchmarks.fresh import ROOT

DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- tables: python -m benchmarks.report -->", "<!-- end of tables -->"

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
DTYPES = {"cpu": ("fp32",), "cuda": ("fp32", "bf16")}  # of the cases that goals are set for


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables between the markers; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="a folder of JSON files")
    parser.add_argument("--docs", type=Path, default=DOCS, help="a Markdown file with the two markers")
    args = parser.parse_args(arguments)
    try:
        report = render(results.read_all(args.results))
        args.docs.write_text(inserted(args.docs.read_text(encoding="utf-8"), report), encoding="utf-8")
    except (OSError, results.ResultError, ValueError) as error:
        options.fail(parser, str(error))
    print(f"tables: {args.docs}")
    return 0


def inserted(text: str, report: str) -> str:
    """`text` with `report` between the markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{report}\n\n{END}{after}"


def render(found: Sequence[Mapping[str, Any]]) -> str:
    """All tables; a device that nobody measured has goals that say so."""
    parts = []
    for device, title in DEVICES.items():
        steps = [r for r in found if (r["benchmark"], r["device"]) == ("step", device)]
        for result in steps:
            parts += [f"### A step: {title}, {result['environment']['hardware']}", *_step(result)]
        missing = tables.unmeasured(device, DTYPES[device], [case for result in steps for case in result["cases"]])
        if missing:
            parts += [f"### A step: {title}, not measured yet", tables.goals_table(device, missing)]
    parts.append("### Whole training steps")
    for device, title in DEVICES.items():
        trained = [r for r in found if (r["benchmark"], r["device"]) == ("train", device)]
        for result in trained:
            for case in result["cases"]:
                head = f"{title}, {result['environment']['hardware']}: {tables.train_title(result, case)}."
                parts += [head, tables.train_table(case)]
            parts.append(tables.conditions(result))
        if not trained:
            parts.append(f"{title}: not measured.")
    return "\n\n".join(parts)


def _step(result: Mapping[str, Any]) -> list[str]:
    cases = result["cases"]
    device = result["device"]
    parts = [tables.conditions(result), "Goals:", tables.goals_table(device, cases)]
    for case in cases:
        parts += [f"{tables.case_title(case)}:", tables.step_table(case, device)]
    return parts + [text for text in [tables.notes(result)] if text]


if __name__ == "__main__":
    sys.exit(main())
