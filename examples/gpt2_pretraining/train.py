"""Pretrain a small GPT-2 with the Hugging Face Trainer and optim="adopt".

python examples/gpt2_pretraining/train.py --config examples/gpt2_pretraining/configs/stdlib.yaml
"""

import arguments
import recipe as shared
import report
from transformers import Trainer, default_data_collator

import adopt_hf  # noqa: F401  registers optim="adopt"; must come before the parser is built


class PerplexityTrainer(Trainer):
    """Trainer that logs the perplexity beside every loss."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(report.with_perplexity(logs), start_time)


def main() -> None:
    settings = arguments.parse(None, description=__doc__)
    recipe = shared.prepare(settings, "train.py")
    trainer = PerplexityTrainer(
        model=recipe.model,
        args=recipe.args,
        train_dataset=recipe.corpus.train,
        eval_dataset=recipe.corpus.validation,
        processing_class=recipe.corpus.tokenizer,
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=str(recipe.checkpoint) if recipe.checkpoint else None)
    evaluated = report.curve(trainer.state.log_history, "eval_loss")[0]
    if trainer.state.global_step not in evaluated:
        trainer.evaluate()
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        shared.finish(recipe, recipe.model, trainer.state)


if __name__ == "__main__":
    arguments.run(main)
