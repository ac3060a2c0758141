"""The tables of docs/benchmarks.md, from all runs in experiments/results/step: `python -m experiments report`."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.step import tables

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
DTYPES = {"cpu": ("fp32",), "cuda": ("fp32", "bf16")}  # of the cases that goals are set for


def render(found: Sequence[Mapping[str, Any]]) -> str:
    """Return all tables, with the range over all runs in each cell. The goals of an unmeasured device say so."""
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
    """Return the cases of all results, grouped by shape, dtype and threads."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        for case in result["cases"]:
            groups.setdefault((case["shape"], case["dtype"], case["threads"]), []).append(case)
    return list(groups.values())
