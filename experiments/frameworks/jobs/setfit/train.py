"""Train a SetFit model. Its body is trained by a trainer of sentence-transformers."""

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression

# page:
import adopt_hf  # noqa: F401

# end of page


def main() -> None:
    words = Transformer("model", max_seq_length=64)
    model = SetFitModel(SentenceTransformer(modules=[words, Pooling(16)], device="cpu"), LogisticRegression())
    rows = [{"text": f"{i} plus {i + 3}?", "label": i % 2} for i in range(16)]
    args = TrainingArguments("out", batch_size=4, max_steps=4, body_learning_rate=1e-2, report_to="none")
    trainer = Trainer(model, args, train_dataset=Dataset.from_list(rows))
    # page:
    trainer.st_trainer.args.optim = "adopt"
    trainer.st_trainer.args.optim_args = "beta2=0.99"
    # end of page
    trainer.train()


if __name__ == "__main__":
    main()
