"""Score a tuned model, or an adapter, and what it was tuned from on multiple-choice questions, with lm-eval.

python examples/llama_instruct/evaluate.py runs/llama-stdlib                              # held-out functions, offline
python examples/llama_instruct/evaluate.py runs/llama-alpaca_7b_full --tasks mmlu --num_fewshot 5

Prints a table and writes evaluation.json and evaluation.png into the model's folder.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python FILE` finds the package `examples`

import datasets
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from examples.llama_instruct import adapters, questions
from examples.shared.cli import run
from examples.shared.errors import InputError, one_line
from examples.shared.launch import make_folder
from examples.shared.plots import PALE, STRONG

STDLIB = "stdlib"
COLOURS = {"before": PALE, "after": STRONG}


@dataclass
class Score:
    """The share of right answers in a group of questions, and its standard error."""

    accuracy: float
    error: float
    questions: int


def main() -> None:
    args = parse()
    base = args.base or adapters.base_of(args.model)
    adapter = adapters.is_adapter(args.model)
    adapters.read_config(base)
    if adapter:
        adapters.check_adapter(args.model, base)
    out = Path(args.out or args.model)
    make_folder(out, "out")
    tokenizer = args.model
    scores = {"before": score(args, pretrained=base, tokenizer=tokenizer)}
    tuned = {"pretrained": base, "peft": args.model} if adapter else {"pretrained": args.model}
    scores["after"] = score(args, **tuned, tokenizer=tokenizer)
    show(scores, args.tasks)
    written = {"tasks": args.tasks, "model": args.model, "base": base, "num_fewshot": args.num_fewshot}
    written |= {when: {group: asdict(s) for group, s in found.items()} for when, found in scores.items()}
    (out / "evaluation.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    plot(scores, out / "evaluation.png", f"{Path(args.model).name}: {args.tasks}")
    print(f"evaluation.json, evaluation.png in {out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder with the tuned model or the adapter")
    parser.add_argument("--base", help="the model before tuning, if it is no longer where the folder says")
    parser.add_argument("--tasks", default=STDLIB, help=f"{STDLIB} (default), mmlu, or another of lm-eval's groups")
    parser.add_argument(
        "--limit", type=int, default=0, help="number of questions; for a group of lm-eval, of each task; 0: all"
    )
    parser.add_argument(
        "--num_fewshot", type=int, help="number of solved examples before each question (5 is usual for MMLU)"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="dtype of the weights (default: as they were saved)",
    )
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--out", help="folder for the results (default: the folder of the model)")
    args = parser.parse_args()
    if args.limit < 0 or args.batch_size < 1:
        raise InputError(f"limit must be at least 0 and batch_size at least 1, got {args.limit} and {args.batch_size}")
    if args.num_fewshot is not None and (args.num_fewshot < 0 or args.tasks == STDLIB):
        raise InputError(
            f"num_fewshot must be at least 0, and needs other --tasks than {STDLIB}; got {args.num_fewshot}"
        )
    if not Path(args.model).is_dir():
        raise InputError(f"model {args.model} is not a folder; give the folder of a tuned model or an adapter")
    return args


def score(args: argparse.Namespace, **model: str) -> dict[str, Score]:
    """Return the scores of one model by group of questions. The last one, 'all', is over all groups."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    lm = HFLM(**model, device=device, dtype=args.dtype, batch_size=args.batch_size)
    common = {"num_fewshot": args.num_fewshot, "bootstrap_iters": 0, "log_samples": False}
    if args.tasks != STDLIB:
        try:
            results = lm_eval.simple_evaluate(lm, tasks=[args.tasks], limit=args.limit or None, **common)
        except (KeyError, ValueError, OSError) as error:  # an unknown name, or data that cannot be loaded
            raise InputError(f"tasks {args.tasks!r} cannot be run: {one_line(error)}") from error
        return of_groups(results, args.tasks)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        subjects = questions.write(Path(folder), args.limit)
        tasks = [questions.task(subject, Path(folder)) for subject in subjects]
        results = lm_eval.simple_evaluate(lm, tasks=tasks, apply_chat_template=True, **common)
    found = {subject: of_task(results, f"{STDLIB}_{subject}") for subject in subjects}
    return found | {"all": mean(list(found.values()))}


def of_task(results: dict[str, Any], task: str) -> Score:
    figures, count = results["results"][task], results["n-samples"][task]["effective"]
    if "acc,none" not in figures:
        raise InputError(f"task {task} has no accuracy; it has {', '.join(figures)}")
    accuracy = figures["acc,none"]
    return Score(accuracy, (accuracy * (1 - accuracy) / count) ** 0.5, count)


def of_groups(results: dict[str, Any], name: str) -> dict[str, Score]:
    """Return the scores of the groups in lm-eval's group `name`, such as MMLU's four, or of its tasks."""
    # If `name` is a tag, lm-eval returns its tasks without the name.
    leaves = [task for task in results["results"] if task in results["n-samples"]]
    members = results["group_subtasks"].get(name) or ([name] if name in results["results"] else leaves)
    found = {}
    for member in members:
        tasks = tasks_in(results, member)
        label = results["results"].get(member, {}).get("alias", member).strip(" -")
        found[label] = mean([of_task(results, task) for task in tasks])
    return found | {"all": mean(list(found.values()))}


def tasks_in(results: dict[str, Any], group: str) -> list[str]:
    members = results["group_subtasks"].get(group) or []
    return [task for member in members for task in tasks_in(results, member)] or [group]


def mean(scores: list[Score]) -> Score:
    """Return the score over the questions of all `scores`."""
    count = sum(s.questions for s in scores)
    accuracy = sum(s.accuracy * s.questions for s in scores) / count
    return Score(accuracy, (accuracy * (1 - accuracy) / count) ** 0.5, count)


def show(scores: dict[str, dict[str, Score]], title: str) -> None:
    table = Table("group", "questions", "before, %", "after, %", "change", title=title)
    for group, before in scores["before"].items():
        after = scores["after"][group]
        cells = (f"{100 * s.accuracy:.1f} +- {100 * s.error:.1f}" for s in (before, after))
        table.add_row(group, str(before.questions), *cells, f"{100 * (after.accuracy - before.accuracy):+.1f}")
    Console(width=max(80, Console().width)).print(table)


def plot(scores: dict[str, dict[str, Score]], path: Path, title: str) -> None:
    """Draw a bar for each group into the PNG file `path`, with standard errors and the score of guessing."""
    groups = list(scores["before"])
    figure = Figure(figsize=(1.5 + 1.2 * len(groups), 4.5), layout="constrained")
    axes = figure.add_subplot()
    for side, (when, of_groups) in zip((-0.2, 0.2), scores.items(), strict=True):
        axes.bar(
            [i + side for i in range(len(groups))],
            [100 * of_groups[g].accuracy for g in groups],
            width=0.38,
            yerr=[100 * of_groups[g].error for g in groups],
            color=COLOURS[when],
            label=when,
        )
    if title.endswith((STDLIB, "mmlu")):
        axes.axhline(100 / questions.CHOICES, color="black", linewidth=0.8, linestyle=":", label="guessing")
    axes.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
    axes.set(ylabel="right answers, %", title=title)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run(main)
