"""The plot of a result: a bar for every optimizer of every case."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.step.peers import PEERS
from experiments.step.tables import case_title


def bars(result: Mapping[str, Any], path: Path) -> str:
    """Draw the times of a step, as a multiple of AdamW fused's, into `path`.

    Returns:
        A line that says where the picture is, or why there is none.
    """
    try:
        import matplotlib
    except ImportError:
        return "no plot: matplotlib is not installed"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = result["cases"]
    figure, axes = pyplot.subplots(len(cases), 1, figsize=(9, 1 + 3 * len(cases)), squeeze=False, layout="constrained")
    for axis, case in zip(axes[:, 0], cases, strict=True):
        rows = {name: row for name, row in case["rows"].items() if not row["why"] and row["to_adamw"]}
        names = [PEERS[name].title.strip("*") if name in PEERS else name for name in rows]
        values = [row["to_adamw"]["median"] for row in rows.values()]
        colours = ["tab:red" if name.startswith("adopt_hf") else "tab:gray" for name in names]
        axis.barh(names, values, color=colours)
        for place, value in enumerate(values):
            axis.annotate(f" {value:.2f}", (value, place), va="center", fontsize=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set(title=case_title(case), xlabel="time of a step, x torch AdamW fused")
        axis.invert_yaxis()
    figure.suptitle(f"{result['environment']['hardware']}, {result['date']}")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return f"plot: {path}"
