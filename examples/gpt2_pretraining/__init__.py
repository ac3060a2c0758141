"""Pretrain GPT-2 from random weights, with the Trainer or with a plain Accelerate loop."""
