"""Train a tiny LLaMA with the Trainer and ADOPT. Run `python examples/quickstart_trainer.py`: it needs no download."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import adopt_hf  # noqa: F401  registers optim="adopt"

torch.manual_seed(0)
# Each sequence counts upwards modulo 32 from a random start.
sequences = (torch.randint(32, (1024, 1)) + torch.arange(16)) % 32
config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config)
args = TrainingArguments(
    output_dir="runs/quickstart",
    optim="adopt",
    learning_rate=3e-3,
    weight_decay=0.1,
    per_device_train_batch_size=16,
    max_steps=100,
    logging_steps=20,
    save_strategy="no",
    report_to="none",
    dataloader_pin_memory=False,
    disable_tqdm=True,
)
trainer = Trainer(model=model, args=args, train_dataset=[{"input_ids": row, "labels": row} for row in sequences])
trainer.train()  # prints the loss every 20 steps
