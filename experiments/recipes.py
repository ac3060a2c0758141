"""The losses that the offline recipes end with: what was run, and the tables of their READMEs.

python -m experiments recipes               # run all of them, one after the other, a thread each; a row each
python -m experiments recipes --quick       # a few steps of each, and the rows elsewhere
python -m experiments recipes "demo, ADOPTW"

A run adds a row to docs/results/recipes.jsonl and replaces none; `make docs-numbers` shows all of them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adopt_hf.hyperparameters import WARMUP_EXPONENT
from experiments.harness import command, pages, runs
from experiments.harness import machine as conditions
from experiments.harness.machine import RESULTS, ROOT

ROWS = RESULTS / "recipes.jsonl"
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "trl", "peft", "lm-eval")
Row = Mapping[str, Any]


class Run(NamedTuple):
    """A command of a recipe, and what its row is called."""

    recipe: str
    config: str
    optimizer: str
    options: tuple[str, ...] = ()


RUNS = {
    "demo, ADOPTW": Run("gpt2_pretraining", "stdlib", "ADOPTW"),
    "demo, ADOPT": Run("gpt2_pretraining", "stdlib", "ADOPT", ("--optim_args", "beta2_warmup=false")),
    "demo, AdamW": Run("gpt2_pretraining", "stdlib_adamw", "AdamW"),
    "LLaMA, ADOPTW": Run("llama_instruct", "stdlib", "ADOPTW", ("--use_cpu",)),
    "LLaMA, AdamW": Run("llama_instruct", "stdlib", "AdamW", ("--use_cpu", "--optim", "adamw_torch")),
    "LLaMA with LoRA, ADOPTW": Run("llama_instruct", "stdlib_lora", "ADOPTW", ("--use_cpu",)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments recipes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"Some of {'; '.join(RUNS)} (default: all).")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_steps", type=int, help="Steps of each run (default: those of its config).")
    parser.add_argument("--results", type=Path, default=ROWS, help="File of JSON lines to which the rows are added.")
    args = command.parse(parser, arguments, max_steps=20, results=command.TRIED / "recipes.jsonl")
    for name in args.names:
        if name not in RUNS:
            parser.error(f"there is no run {name!r}: name some of {'; '.join(RUNS)}")
    for name in args.names or RUNS:
        row = run(RUNS[name], args.seed, args.max_steps)
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}: {row['eval_loss']:.3f}")


def run(what: Run, seed: int, max_steps: int | None = None) -> dict[str, Any]:
    """Run a recipe with one thread, and return its row.

    Raises:
        RuntimeError: If it fails; with the end of what it printed.
    """
    example = ROOT / "examples" / what.recipe
    before, start, used = conditions.now(*PACKAGES), time.perf_counter(), of_children()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / what.config
        words = ["--config", str(example / "configs" / f"{what.config}.yaml"), "--output_dir", str(output)]
        words += ["--seed", str(seed), "--report_to", "none", "--disable_tqdm", "true", *what.options]
        words += ["--max_steps", str(max_steps)] if max_steps else []
        environment = os.environ | runs.THREADS | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, str(example / "train.py"), *words], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{what}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
        row = {**what._asdict(), "seed": seed, "threads": 1, **read(output)}
        if what.optimizer == "ADOPTW":
            row["exponent"] = WARMUP_EXPONENT
    seconds, cpu_seconds = time.perf_counter() - start, of_children() - used
    return row | {"seconds": round(seconds), "cpu_seconds": round(cpu_seconds), "conditions": before}


def of_children() -> float:
    """Return the seconds of CPU time of the processes that have ended: what a loaded machine changes little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(output: Path) -> dict[str, Any]:
    """Return the held-out losses in the folder of a finished run and, if there were questions, the scores."""
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    losses = [(entry["step"], entry["eval_loss"]) for entry in state["log_history"] if "eval_loss" in entry]
    row: dict[str, Any] = {"steps": state["global_step"], "eval_loss": losses[-1][1]}
    row["loss_before"] = losses[0][1] if losses[0][0] == 0 else None
    evaluation = output / "evaluation.json"
    if evaluation.is_file():
        scores = json.loads(evaluation.read_text(encoding="utf-8"))
        row["score_before"], row["score"] = (scores[when]["all"]["accuracy"] for when in ("before", "after"))
        row["score_error"] = scores["after"]["all"]["error"]
    return row


# -- the pages ---------------------------------------------------------------------------------------------------------


def rows(recipe: str) -> list[Row]:
    """Return the kept rows of a recipe, by config and optimizer."""
    found = runs.lines(ROWS)
    ours = [(one.config, one.optimizer) for one in RUNS.values() if one.recipe == recipe]
    order = {key: number for number, key in enumerate(ours)}
    chosen = [row for row in found if row["recipe"] == recipe]
    return sorted(chosen, key=lambda row: (order[row["config"], row["optimizer"]], row["conditions"]["date"]))


def table(recipe: str) -> str:
    """Return the table of a recipe's runs, with their conditions."""
    found = rows(recipe)
    scored = any(row.get("score") is not None for row in found)
    head = ["config", "optimizer", "steps", "seed", "threads", "held-out loss" + ", before and after" * scored]
    head += ["score, before and after"] * scored + ["date", "commit"]
    lines: list[list[object]] = []
    for row in found:
        before = f"{row['loss_before']:.3f}, " if scored and row.get("loss_before") is not None else ""
        name = row["optimizer"] + (f" (`{' '.join(row['options'])}`)" if row["optimizer"] == "ADOPT" else "")
        name += f" (k = {row['exponent']:g})" if "exponent" in row else ""
        cells = [f"`{row['config']}`", name, f"{row['steps']:,}", row["seed"], row["threads"]]
        cells.append(f"{before}**{row['eval_loss']:.3f}**")
        if scored:
            cells.append(_score(row))
        lines.append([*cells, row["conditions"]["date"], row["conditions"]["commit"]])
    measured = conditions.together([row["conditions"] for row in found])
    return f"{pages.table(head, lines)}\n\n{conditions.sentence(measured)}"


def _score(row: Row) -> str:
    if row.get("score") is None:
        return ""
    return f"{row['score_before']:.1%}, **{row['score']:.1%}** ± {100 * row['score_error']:.1f}"


def short() -> str:
    """Return the table of the README: the last run of each recipe with ADOPTW, and the losses of AdamW's."""
    lines = []
    for name, one in RUNS.items():
        if one.optimizer != "ADOPTW":
            continue
        found = rows(one.recipe)
        last = [row for row in found if (row["config"], row["optimizer"]) == (one.config, one.optimizer)][-1]
        of_base = [row for row in found if row["loss_before"] == last["loss_before"]]  # tuned from the same base model
        twins = [row for row in of_base if row["optimizer"] == "AdamW"]
        adamw = [f"{row['eval_loss']:.3f}" for row in twins if row["config"].removesuffix("_adamw") == one.config]
        minutes = f"{last['cpu_seconds'] / 60:.0f}" if "cpu_seconds" in last else "not kept"
        lines.append([name.split(",")[0], f"{last['steps']:,}", minutes, f"{last['eval_loss']:.3f}", " ".join(adamw)])
    head = ["recipe", "steps", "minutes of one core", "held-out loss", "AdamW's"]
    shown = [row for one in RUNS.values() for row in rows(one.recipe)]
    dates = sorted({row["conditions"]["date"] for row in shown if row["optimizer"] != "ADOPT"})
    processors = conditions.listed(row["conditions"]["processor"] for row in shown)
    where = f"Seed 0, one thread, {dates[0]} to {dates[-1]} on {processors}; losses in nats per token."
    return f"{pages.table(head, lines)}\n\n{where}"


def behind() -> str:
    """Return the most by which the demo with the authors' rule has ended behind AdamW, with equal seed and threads."""
    found = rows("gpt2_pretraining")
    adamw = {(row["seed"], row["threads"]): row["eval_loss"] for row in found if row["optimizer"] == "AdamW"}
    pairs = [(row, adamw.get((row["seed"], row["threads"]))) for row in found if row["optimizer"] == "ADOPT"]
    return f"{max(row['eval_loss'] - loss for row, loss in pairs if loss is not None):.2f}"


TEXTS: dict[str, Callable[[], str]] = {
    "losses of the GPT-2 recipe": lambda: table("gpt2_pretraining"),
    "losses of the LLaMA recipe": lambda: table("llama_instruct"),
    "behind AdamW in the demo": behind,
    "recipes short": short,
}
