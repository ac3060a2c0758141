"""The Trainer with optim="adopt", in a process that does not import adopt_hf. It has to be installed.

With transformers 5.23.0: "adopt is not a valid OptimizerNames".
"""

import torch
from transformers import Trainer, TrainingArguments

args = TrainingArguments("out", optim="adopt", learning_rate=1e-2, optim_args="clip_exp=0.3", use_cpu=True)
optimizer = Trainer(torch.nn.Linear(2, 1), args).create_optimizer()
group = optimizer.param_groups[0]
print(type(optimizer).__module__, type(optimizer).__name__, group["lr"], group["clip_exp"])
assert type(optimizer).__name__ == "ADOPTW"
assert (group["lr"], group["clip_exp"]) == (1e-2, 0.3)
