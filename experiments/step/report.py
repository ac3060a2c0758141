"""The tables of docs/benchmarks.md, from all runs in experiments/results/step: `python -m experiments report`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.harness import markers
from experiments.harness.fresh import ROOT
from experiments.step import options, results, tables

DOCS = ROOT / "docs" / "benchmarks.md"

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
DTYPES = {"cpu": ("fp32",), "cuda": ("fp32", "bf16")}  # of the cases that goals are set for


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables between the markers; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments report", description=__doc__)
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="a folder of JSON files")
    parser.add_argument("--docs", type=Path, default=DOCS, help="a Markdown file with the two markers")
    args = parser.parse_args(arguments)
    try:
        report = render(results.read_all(args.results))
        args.docs.write_text(
            markers.inserted(args.docs.read_text(encoding="utf-8"), "tables", report), encoding="utf-8"
        )
    except (OSError, results.ResultError, ValueError) as error:
        options.fail(parser, str(error))
    print(f"tables: {args.docs}")
    return 0


def render(found: Sequence[Mapping[str, Any]]) -> str:
    """All tables, the range over all runs in each cell; a device that was not measured has goals that say so."""
    parts = []
    for device, title in DEVICES.items():
        steps = [r for r in found if (r["benchmark"], r["device"]) == ("step", device)]
        for hardware in dict.fromkeys(result["environment"]["hardware"] for result in steps):
            results = [result for result in steps if result["environment"]["hardware"] == hardware]
            parts += [f"### A step: {title}, {hardware}", *_steps(results, device)]
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
        parts.append(tables.runs(trained) if trained else f"{title}: not measured.")
    return "\n\n".join(parts)


def _steps(results: Sequence[Mapping[str, Any]], device: str) -> list[str]:
    cases = grouped(results)
    parts = [tables.runs(results), "Goals:", tables.goals_table(device, cases)]
    for runs in cases:
        parts += [f"{tables.case_title(runs[0])}:", tables.step_table(runs, device)]
    notes = tables.notes([case for runs in cases for case in runs])
    return [*parts, notes] if notes else parts


def grouped(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The cases of all results, each with those of the same shape, dtype and threads."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        for case in result["cases"]:
            groups.setdefault((case["shape"], case["dtype"], case["threads"]), []).append(case)
    return list(groups.values())
