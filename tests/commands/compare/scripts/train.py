"""A user's script with the Trainer: a line through points. `--how` makes it one that is not fit for a comparison.

train.py --how WAY [any TrainingArguments]
"""

import os
import sys
import time
from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments, set_seed


@dataclass
class Arguments:
    how: str = field(default="well", metadata={"help": "What is wrong with this script."})
    pause: float = field(default=0.0, metadata={"help": "Seconds that a step takes at least."})
    fail_seed: int = field(default=-1, metadata={"help": "The seed whose run ends with an error."})


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x)[:, 0] - labels).square().mean()}


class Pause(TrainerCallback):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        time.sleep(self.seconds)


def main() -> None:
    mine, args = HfArgumentParser((Arguments, TrainingArguments)).parse_args_into_dataclasses()
    if mine.how == "no training":
        print("nothing was trained")
        return
    if mine.how == "own optim":
        args.optim = type(args.optim)("sgd")
    if mine.how == "own folder":
        args.output_dir = os.path.join(os.path.dirname(args.output_dir), "elsewhere")
    if mine.how == "own seed":
        args.seed = 7
    set_seed(args.seed)
    if args.seed == mine.fail_seed:
        print("the data are read", flush=True)
        raise OSError("the disk | of <seed> is gone")
    x = torch.randn(64, 4)
    data = [{"x": row, "labels": row.sum() + 0.1 * torch.randn(())} for row in x]
    model = Model()
    given = {}
    if mine.how == "own optimizer":
        given["optimizers"] = (torch.optim.SGD(model.parameters(), args.learning_rate), None)
    callbacks = [Pause(mine.pause)] if mine.pause else []
    evaluated = data[:16] if args.eval_strategy != "no" else None
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=evaluated, callbacks=callbacks, **given)
    trainer.train()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
