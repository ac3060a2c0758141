"""Train a tiny LLaMA with Accelerate and ADOPT. Run `python examples/quickstart_loop.py`: it needs no download."""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from adopt_hf import ADOPTW, param_groups

torch.manual_seed(0)
# Each sequence counts upwards modulo 32 from a random start.
sequences = (torch.randint(32, (1600, 1)) + torch.arange(16)) % 32
config = LlamaConfig(vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config)
# Biases and the weights of normalization layers do not decay.
optimizer = ADOPTW(param_groups(model, weight_decay=0.1), lr=3e-3)

accelerator = Accelerator()
model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(sequences, batch_size=16))
losses = []
for step, batch in enumerate(loader, start=1):
    loss = model(input_ids=batch, labels=batch).loss
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    if step % 20 == 0:
        accelerator.print(f"step {step}: loss {sum(losses[-20:]) / 20:.3f}")
