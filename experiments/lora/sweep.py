"""LoRA with ADOPT, ADOPT with beta2_warmup and AdamW over learning rates and seeds, on the offline recipe.

python -m experiments lora                # what has not been run yet, then the report
python -m experiments lora --report_only

Every run is a file of runs/lora, written when it is over: an interrupted sweep goes on. When all are over, each becomes
a line of the results file. The report is a table between markers of docs/fine_tuning.md and the plot
docs/lora_sweep.png; `make docs-numbers` writes its sentences.
"""

import argparse
import json
import os
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from examples.llama_instruct import settings
from examples.shared import launch
from examples.shared.cli import run
from examples.shared.errors import InputError
from experiments.harness import command, machine, pages
from experiments.harness import runs as parts
from experiments.harness.runs import Part
from experiments.lora import report as lora_report
from experiments.lora.clipping import ClippedShare
from experiments.lora.report import OPTIMIZERS, PAGE, PLOT, RESULTS

CONFIG = settings.HERE / "configs" / "stdlib_lora.yaml"
FOLDER = Path("runs")
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2)
# A run is to take half a minute: small batches, and an evaluation on a third of what is held out.
SMALL = ("--per_device_train_batch_size", "8", "--max_eval_records", "400")
ALONE = ("--report_to", "none", "--save_strategy", "no", "--logging_strategy", "no", "--disable_tqdm", "true")


def main() -> None:
    run(sweep)


def sweep() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=300, help="Steps of each run (default: 300).")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="Runs at once, with one thread each.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="Folder of the finished runs until all are over.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="File of JSON lines to which the rows are added.")
    parser.add_argument("--config", type=Path, default=CONFIG, help="Config that the runs have in common.")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--report_only", action="store_true")
    parser.add_argument("--page", type=Path, default=PAGE, help="Page with the markers of the report.")
    parser.add_argument("--plot", type=Path, default=PLOT)
    tried = command.TRIED
    quick = {"folder": tried, "results": tried / "lora.jsonl", "plot": tried / "lora.png"}
    args = command.parse(parser, max_steps=20, page=None, **quick)
    if args.max_steps < 1 or args.workers < 1 or min(args.rates) <= 0:
        got = f"{args.max_steps}, {args.workers} and {args.rates}"
        raise InputError(f"--max_steps and --workers must be at least 1 and --rates above 0, got {got}")
    if not args.report_only:
        measure(args)
    rows = parts.lines(args.results)
    if not rows:
        raise InputError(f"{args.results} has no results: run `python -m experiments lora` without --report_only")
    write_report(rows, args.page, args.plot)


def measure(args: argparse.Namespace) -> None:
    """Do the runs that are not in the results file. One that has other steps than those in it is an error."""
    there = parts.lines(args.results)
    if any(row["steps"] != args.max_steps for row in there):
        raise InputError(
            f"{args.results} has runs of {there[0]['steps']} steps, not of {args.max_steps}: choose another --results"
        )
    done = {(row["optimizer"], row["lr"], row["seed"]) for row in there}
    shared = {"steps": args.max_steps, "config": str(args.config)}
    todo = [
        Part("lora", f"{name}-lr{lr:g}-{seed}", {"optimizer": name, "lr": lr, "seed": seed, **shared})
        for seed in args.seeds
        for lr in args.rates
        for name in OPTIMIZERS
        if (name, lr, seed) not in done
    ]
    if not todo:
        return
    base = prepare(args.config)
    rows = parts.run(todo, partial(one, base=base), args.folder, args.workers)
    args.results.parent.mkdir(parents=True, exist_ok=True)
    with args.results.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row["result"]) + "\n" for row in rows)


def prepare(config: Path) -> str:
    """The base model, pretrained if it is not there yet."""
    from examples.llama_instruct import train

    launch.show_logs(train.logger.name)
    return train.base_model(*settings.parse(["--config", str(config), "--use_cpu"], __doc__))


_prepared: dict[str, Any] = {}  # the tokenised instructions, once a worker


def one(optimizer: str, lr: float, seed: int, steps: int, config: str, base: str) -> dict[str, Any]:
    """Train once, with one thread. Returns the row of the results."""
    from transformers import TrainerCallback
    from transformers.utils import logging
    from trl import SFTTrainer, get_peft_config

    from examples.llama_instruct import train

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    options = ["--config", config, "--learning_rate", str(lr), "--seed", str(seed), "--max_steps", str(steps)]
    options += ["--eval_strategy", "no", "--eval_on_start", "false", "--use_cpu", "true"]
    options += [*ALONE, *SMALL, *OPTIMIZERS[optimizer]]
    recipe, args, model_args = settings.parse(options, __doc__)
    share = ClippedShare()
    callbacks: list[TrainerCallback] = [share]
    if not _prepared:
        first = train.make_trainer(base, recipe, args, model_args, callbacks)
        _prepared.update(train=first.train_dataset, eval=first.eval_dataset, tokenizer=first.processing_class)
    args.shuffle_dataset = False
    trainer = SFTTrainer(
        model=base,
        args=args,
        train_dataset=_prepared["train"],
        eval_dataset=_prepared["eval"],
        processing_class=_prepared["tokenizer"],
        peft_config=get_peft_config(model_args),
        callbacks=callbacks,
    )
    began = time.perf_counter()
    trainer.train()
    loss = trainer.evaluate()["eval_loss"]
    return {
        "optimizer": optimizer,
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "eval_loss": loss if loss == loss else None,  # NaN is not JSON
        "clipped_first": share.mean(0, 100),
        "clipped": share.mean(),
        "seconds": round(time.perf_counter() - began, 1),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": f"{machine.processor()}, {os.cpu_count()} cores",
        "versions": {package: version(package) for package in ("torch", "transformers", "trl", "peft", "adopt_hf")},
        "python": sys.version.split()[0],
    }


def write_report(rows: list[dict[str, Any]], page: Path | None, plot: Path) -> None:
    """Put the table into `page` and draw `plot`."""
    if page is not None:
        pages.write(page, {"sweep": lora_report.text(rows)})
    lora_report.draw(rows, plot)
