"""The monitor's figures of both offline recipes, as TensorBoard shows them: `python -m experiments monitor_figures`.

python -m experiments monitor_figures                   # trains both with the monitor, and draws docs/monitor.png
python -m experiments monitor_figures --report_only     # draws the kept logs again

The recipes are shorter than by default. Their logs are kept in docs/results/monitor_runs.jsonl.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from examples.shared.errors import InputError
from examples.shared.plots import curve
from experiments.harness import command, machine, runs

RESULTS = machine.RESULTS / "monitor_runs.jsonl"
PLOT = machine.ROOT / "docs" / "monitor.png"
FOLDER = Path("runs/monitor")
RECIPES = {  # the recipe's folder -> steps
    "gpt2_pretraining": 300,
    "llama_instruct": 100,
}
DRAWN = ("loss", "adopt/clipped", "adopt/update_to_weight", "adopt/rms_sqrt_v", "adopt/unobserved")
ORANGE, GRID = "#ff7043", "#e0e0e0"
DIGITS = 4  # that are kept of each number
Row = dict[str, Any]


def words(recipe: str, steps: int, folder: Path) -> list[str]:
    """Return what stands behind `python` to train a recipe with the monitor."""
    path = f"examples/{recipe}"
    found = [f"{path}/train.py", "--config", f"{path}/configs/stdlib.yaml", "--optim_args", "monitor=true"]
    found += ["--max_steps", str(steps), "--logging_steps", str(max(1, steps // 50)), "--save_steps", str(steps)]
    found += ["--output_dir", str(folder / recipe)]
    return [*found, "--evaluate", "false"] if recipe == "llama_instruct" else found


def train(recipe: str, steps: int, folder: Path) -> Row:
    """Train a recipe, and return the row with its logs.

    Raises:
        InputError: If the recipe ends with an error.
    """
    conditions = machine.now("torch", "transformers")
    line = words(recipe, steps, folder)
    done = subprocess.run([sys.executable, *line], cwd=machine.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"python {' '.join(line)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    (state,) = (machine.ROOT / folder / recipe).glob(f"checkpoint-{steps}/trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return {"recipe": recipe, "steps": steps, "log": logged(history), "conditions": conditions}


def logged(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return of a Trainer's log the entries of the training, with the loss and the monitor's figures."""
    return [
        {name: _short(value) for name, value in entry.items() if name in ("step", "loss") or name.startswith("adopt/")}
        for entry in history
        if "loss" in entry
    ]


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw a row of panels for each recipe, a panel for each figure over all elements."""
    figure = Figure(figsize=(3 * len(DRAWN), 2.3 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(DRAWN), squeeze=False)
    for line, row in zip(panels, rows, strict=True):
        line[0].set_ylabel(row["recipe"])
        for axes, name in zip(line, DRAWN, strict=True):
            found = curve(row["log"], name)
            axes.plot(list(found), list(found.values()), color=ORANGE, linewidth=1.4)
            axes.set_title(name, fontsize=9, loc="left")
            axes.grid(color=GRID)
            if name != "loss":
                axes.set_ylim(0, 1.1 * max(found.values()) or 1)
            axes.spines[:].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("step", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, keep the logs, and draw; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments monitor_figures", description=__doc__)
    parser.add_argument("--report_only", action="store_true", help="draw the kept logs")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, help="of each recipe (default: 300 and 100)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    tried = command.TRIED
    quick = {"folder": tried / "monitor", "results": tried / "monitor_runs.jsonl", "plot": tried / "monitor.png"}
    args = command.parse(parser, arguments, steps=20, **quick)
    if not args.report_only:
        rows = [train(recipe, args.steps or RECIPES[recipe], args.folder) for recipe in args.recipes]
        args.results.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = runs.lines(args.results)
    if not rows:
        raise InputError(f"{args.results} has no results")
    plot(rows, args.plot)
    print(text(rows))
    return 0


def text(rows: Sequence[Row] | None = None) -> str:
    """Return the sentence below the picture: the last figures of each run, and the conditions."""
    rows = runs.lines(RESULTS) if rows is None else rows
    ends = []
    for row in rows:
        last = row["log"][-1]
        ends.append(
            f"{row['recipe']} after {last['step']} steps: loss {last['loss']:.3f}, "
            f"{100 * last['adopt/clipped']:.2g} % of the elements clipped, an update of "
            f"{last['adopt/update_to_weight']:.1e} of the weights"
        )
    return f"{'; '.join(ends)}. {machine.sentence(machine.together([row['conditions'] for row in rows]))}"


TEXTS = {"monitor figures": text}
