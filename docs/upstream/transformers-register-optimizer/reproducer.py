"""A package adds an optimizer to the Trainer: by name, on a command line, with `optim_args` of its own.

With transformers 5.23.0 there is no way: `register_optimizer` cannot be imported, and no other function does it.
"""

import ast
import pickle

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import register_optimizer


class Signs(torch.optim.SGD):
    """An optimizer of another package."""


def handler(context):
    momentum, nesterov = ast.literal_eval(context.args.optim_args)  # the text as the user has written it
    return Signs, {"lr": context.args.learning_rate, "momentum": momentum, "nesterov": nesterov}


register_optimizer("signs", handler)
line = ["--output_dir", "out", "--use_cpu", "--optim", "signs", "--optim_args", "(0.5, True)"]
(parsed,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line)
written = TrainingArguments("out", use_cpu=True, optim="signs", optim_args="(0.5, True)")
for args in (parsed, pickle.loads(pickle.dumps(written)), written.set_optimizer("signs", args="(0.5, True)")):
    optimizer = Trainer(torch.nn.Linear(2, 1), args).create_optimizer()
    assert type(optimizer) is Signs
    assert optimizer.param_groups[0]["momentum"] == 0.5
    assert args.to_dict()["optim"] == "signs"
try:
    TrainingArguments("out", optim="sings")
except ValueError as error:
    print(error)
else:
    raise AssertionError("an unknown name is taken")
try:
    register_optimizer("sgd", handler)
except ValueError as error:
    print(error)
else:
    raise AssertionError("a name of transformers is replaced")
