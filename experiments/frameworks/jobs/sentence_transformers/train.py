"""Train a sentence transformer on pairs of a question and its answer."""

import os

from datasets import load_dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sentence_transformers.models import Pooling, Transformer

# page:
import adopt_hf  # noqa: F401

# end of page

SETTINGS = {
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "report_to": "none",
}


def main() -> None:
    words = Transformer("model", max_seq_length=64)
    model = SentenceTransformer(modules=[words, Pooling(16)])
    data = load_dataset("json", data_files="data/pairs.jsonl", split="train")
    # page:
    args = SentenceTransformerTrainingArguments("out", optim="adopt", optim_args="beta2=0.99", **SETTINGS)
    # end of page
    trainer = SentenceTransformerTrainer(model, args, train_dataset=data, loss=MultipleNegativesRankingLoss(model))
    trainer.train(resume_from_checkpoint=os.environ["RESUME"] or None)


if __name__ == "__main__":
    main()
