"""A run of the recipe in examples/gpt2_pretraining, in this process: its data, tokenizer, arguments and Trainer.

`QUICK` is what makes of its configs/stdlib.yaml something that one thread trains in half a minute.
"""

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from experiments.harness import command
from experiments.harness.machine import ROOT
from experiments.harness.runs import InputError

RECIPE = ROOT / "examples" / "gpt2_pretraining"
STDLIB = RECIPE / "configs" / "stdlib.yaml"
QUICK: dict[str, Any] = {
    "n_embd": 64,
    "block_size": 64,
    "max_eval_blocks": 256,
    "per_device_eval_batch_size": 64,
    "logging_steps": 1,
}
PAPERS = "beta2_warmup=false"  # optim_args of the paper's ADOPT: beta2 from the first step
# Nothing but the numbers is kept of a run.
ALONE: dict[str, Any] = {
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "disable_tqdm": True,
    "sample_tokens": 0,
    "dataloader_pin_memory": torch.cuda.is_available(),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress log lines below a warning within the block."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def train(config: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train and evaluate as the recipe's train.py does. Only its cache of tokens is left on disk.

    Args:
        config: A config of the recipe.
        options: The settings that differ, by the names of the recipe's command line.

    Returns:
        {"steps", "losses": the training loss (nats per token, to 4 decimals) at each logged step, "eval_steps",
        "eval_losses", "eval_loss": on the held-out text, at the end, "sequences": in a step, "parameters",
        "tokens_per_second", "threads"}.
        A loss that is not finite is None: JSON has no NaN.

    Raises:
        InputError: If an option is wrong, or there is no such text.
    """
    from transformers import PrinterCallback, Trainer, default_data_collator

    from examples.gpt2_pretraining import recipe, settings
    from examples.gpt2_pretraining.train import RecipeTrainer
    from examples.shared import plots

    with quiet(), tempfile.TemporaryDirectory() as folder:
        try:
            given = settings.parse([*command.words(config, {**ALONE, **options}), "--output_dir", folder], __doc__)
            prepared = recipe.prepare(given, "train.py")
        except SystemExit:  # it has said why; a worker that exits would be waited for
            raise InputError(f"{config.name} does not take {' '.join(command.words(config, options)[2:])}") from None
        args = prepared.args
        trainer: Trainer = RecipeTrainer(
            model=prepared.model,
            args=args,
            train_dataset=prepared.corpus.train,
            eval_dataset=prepared.corpus.validation,
            processing_class=prepared.corpus.tokenizer,
            data_collator=default_data_collator,
        )
        trainer.remove_callback(PrinterCallback)  # its dictionaries would break the bar of the runs
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        last = trainer.evaluate()["eval_loss"]
        history = trainer.state.log_history
        losses, eval_losses = plots.curve(history, "loss"), plots.curve(history, "eval_loss")
    sequences = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "steps": list(losses),
        "losses": [finite(round(loss, 4)) for loss in losses.values()],
        "eval_steps": list(eval_losses),
        "eval_losses": [finite(loss) for loss in eval_losses.values()],
        "eval_loss": finite(last),
        "sequences": sequences,
        "parameters": prepared.model.num_parameters(),
        "tokens_per_second": round(args.max_steps * sequences * given.data.block_size / seconds),
        "threads": torch.get_num_threads(),
    }


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
