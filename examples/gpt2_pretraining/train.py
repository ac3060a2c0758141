"""Pretrain a small GPT-2 with the Hugging Face Trainer and optim="adopt".

python examples/gpt2_pretraining/train.py --config examples/gpt2_pretraining/configs/stdlib.yaml
"""

import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python FILE` finds the package `examples`

from transformers import Trainer, default_data_collator

import adopt_hf  # noqa: F401  registers optim="adopt"; must come before the parser is built
from adopt_hf.integrations.checkpoints import AlreadyFinishedError, MarkComplete, names_a_full_disk
from examples.gpt2_pretraining import recipe as steps
from examples.gpt2_pretraining import report, settings
from examples.shared import cli, launch, plots


class RecipeTrainer(Trainer):
    """A Trainer that logs the perplexity of every loss, and writes the model's config into every checkpoint."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(report.with_perplexity(logs), start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:  # if every process saves its own shard, the Trainer leaves it out
            self.model.config.save_pretrained(output_dir or self.args.output_dir)


def main() -> None:
    recipe = steps.prepare(settings.parse(None, description=__doc__), "train.py")
    # The callback keeps this many checkpoints, and removes an old one only when the new one is complete.
    mark, recipe.args.save_total_limit = MarkComplete(recipe.args.save_total_limit), None
    trainer = RecipeTrainer(
        model=recipe.model,
        args=recipe.args,
        train_dataset=recipe.corpus.train,
        eval_dataset=recipe.corpus.validation,
        processing_class=recipe.corpus.tokenizer,
        data_collator=default_data_collator,
        callbacks=[mark],
    )
    report.use_bar(trainer)
    launch.check_launch(trainer.accelerator, recipe.checkpoint)
    with names_a_full_disk(Path(recipe.args.output_dir)):
        with contextlib.suppress(AlreadyFinishedError):  # a run that was killed before it wrote its model
            trainer.train(resume_from_checkpoint=str(recipe.checkpoint) if recipe.checkpoint else None)
        if trainer.state.global_step not in plots.curve(trainer.state.log_history, "eval_loss"):
            trainer.evaluate()
        trainer.save_state()
        steps.finish(recipe, trainer.accelerator, trainer.model_wrapped, trainer.state)


if __name__ == "__main__":
    cli.run(main)
