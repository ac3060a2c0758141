"""Train a tiny GPT-2 with dropout and a learning-rate schedule for 40 steps, with a checkpoint every 20.

resume.py OUTPUT_DIR full|killed|resumed
"""

import os
import signal
import sys
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import adopt_hf  # noqa: F401


class Kill(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 20:
            os.kill(os.getpid(), signal.SIGKILL)


folder, what = sys.argv[1:]
tokens = torch.randint(64, (24, 8), generator=torch.Generator().manual_seed(1))
args = TrainingArguments(
    folder,
    optim="adopt",
    optim_args="beta2=0.999",
    learning_rate=1e-2,
    weight_decay=0.1,
    per_device_train_batch_size=4,
    max_steps=40,
    warmup_steps=5,
    save_steps=20,
    use_cpu=True,
    report_to="none",
    disable_tqdm=True,
)
torch.manual_seed(0)
config = GPT2Config(
    vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.1, bos_token_id=0, eos_token_id=0
)
trainer = Trainer(
    model=GPT2LMHeadModel(config),
    args=args,
    train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
    callbacks=[Kill()] if what == "killed" else [],
)
trainer.train(resume_from_checkpoint=what == "resumed")
