"""Whether a run of AdamW goes on without a jump when its checkpoint is converted: the offline GPT-2 recipe, five seeds.

python -m experiments convert                   # the runs that have not been done, and the verdict
python -m experiments convert --report_only

AdamW trains for 500 of 1,000 steps. From that checkpoint three runs go on for 200 steps, on the same batches with the
same schedule: AdamW, ADOPT with the state that `adopt-hf convert` has made, and ADOPT with empty state. AdamW
has the Trainer's beta2 = 0.999, or the recipe's 0.95; the other numbers are the recipe's.

The rule, written before the runs:

- a difference is a run's training loss less that of AdamW, of the same seed, averaged over steps of the same numbers;
- the jump is the difference over the first 10 steps. There is none if the 95 % interval (Student, five pairs) of the
  jump lies within +-0.05 nats; there is one if the interval lies outside of 0 and its mean is above 0.05;
- the first 200 steps are within AdamW's interval if in each of 10 blocks of 20 steps the mean over the seeds lies
  within the 95 % interval of AdamW's own mean over the seeds;
- "goes on" takes both; "jumps" is said of a jump; else it is "not shown".

Results are in experiments/results/convert.jsonl. docs/migrate.png shows them, and `make docs-numbers` writes the table
of docs/migrate.md.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.shared.errors import InputError
from experiments.convert.plot import plot
from experiments.convert.report import table
from experiments.harness import command
from experiments.harness import runs as parts
from experiments.harness.runs import Part

NAME = "convert"
FOLDER = Path("runs/convert")
RESULTS = parts.RESULTS / f"{NAME}.jsonl"
PLOT = Path(__file__).parents[2] / "docs" / "migrate.png"
SEEDS = (0, 1, 2, 3, 4)
BETA2 = (0.999, 0.95)
SAVED, ENDED, STEPS = 500, 700, 1000


def main() -> None:
    """Do the runs, keep their rows, draw them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report_only", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--workers", type=int, default=1, help="runs at once, each with one thread")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--beta2", type=float, nargs="+", default=BETA2)
    parser.add_argument(
        "--steps",
        type=int,
        nargs=3,
        default=(SAVED, ENDED, STEPS),
        metavar=("SAVED", "ENDED", "ALL"),
        help="of AdamW, at the end of the runs that go on, and of the schedule",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    tried = command.TRIED
    quick = {"folder": tried, "results": tried / "convert.jsonl", "plot": tried / "migrate.png"}
    args = command.parse(parser, steps=(20, 40, 50), seeds=(0, 1), beta2=(0.999,), **quick)
    if not args.report_only:
        parts.keep(args.results, parts.run(wanted(args.seeds, args.beta2, args.steps), one, args.folder, args.workers))
    rows = parts.lines(args.results)
    if not rows:
        raise InputError(f"{args.results} has no results")
    plot(rows, args.plot)
    print(table(rows))


def wanted(seeds: Sequence[int], betas: Sequence[float], steps: Sequence[int]) -> list[Part]:
    """Return a part for each beta2 and seed."""
    names = dict(zip(("saved", "ended", "steps"), steps, strict=True))
    return [
        Part(NAME, f"{beta2:g}-{seed}", {"beta2": beta2, "seed": seed, **names}) for beta2 in betas for seed in seeds
    ]


def one(beta2: float, seed: int, saved: int, ended: int, steps: int) -> dict[str, Any]:
    """Train, convert, and go on three times; return the training losses after the checkpoint, by name."""
    from adopt_hf.commands.convert.conversion import convert

    common = {"seed": seed, "adam_beta2": beta2, "max_steps": steps, "save_steps": saved, "save_strategy": "steps"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = train(folder / "adamw", {**common, "optim": "adamw_torch"}, last=saved)
        checkpoint = folder / "adamw" / f"checkpoint-{saved}"
        for arm in ("converted", "empty"):
            convert(checkpoint, "adopt", folder / arm / checkpoint.name)
        forget(folder / "empty" / checkpoint.name)
        losses = {
            arm: train(
                folder / arm,
                {**common, "optim": optim, "resume_from_checkpoint": folder / arm / checkpoint.name},
                last=ended,
            )
            for arm, optim in (("adamw", "adamw_torch"), ("converted", "adopt"), ("empty", "adopt"))
        }
    return {"before": before[-10:], **{arm: found[saved:] for arm, found in losses.items()}}


def train(folder: Path, options: Mapping[str, Any], last: int) -> list[float]:
    """Train as the recipe's train.py does, to step `last`, and return the loss of each step, earlier runs' included."""
    from transformers import PrinterCallback, TrainerCallback, default_data_collator

    from adopt_hf.integrations.checkpoints import MarkComplete
    from examples.gpt2_pretraining import recipe, settings
    from examples.gpt2_pretraining.train import RecipeTrainer
    from experiments.paper import gpt2

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop |= state.global_step >= last

    with gpt2.quiet():
        words = command.words(gpt2.STDLIB, {**gpt2.ALONE, **gpt2.QUICK, **options})
        prepared = recipe.prepare(settings.parse([*words, "--output_dir", str(folder)], __doc__), "train.py")
        trainer = RecipeTrainer(
            model=prepared.model,
            args=prepared.args,
            train_dataset=prepared.corpus.train,
            processing_class=prepared.corpus.tokenizer,
            data_collator=default_data_collator,
            callbacks=[MarkComplete(), Stop()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(prepared.checkpoint) if prepared.checkpoint else None)
    return [round(entry["loss"], 4) for entry in trainer.state.log_history if "loss" in entry]


def forget(checkpoint: Path) -> None:
    """Leave out the state of every parameter of a complete checkpoint; groups and schedule stay."""
    import torch

    from adopt_hf.integrations.checkpoints.marks import MARK, write_mark

    marked = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    torch.save({**saved, "state": {}}, checkpoint / "optimizer.pt")
    write_mark(checkpoint, marked["step"], layout=marked["layout"], optimizer=marked["optimizer"])
