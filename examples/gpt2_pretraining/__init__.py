"""GPT-2 from scratch, with the Trainer and with a plain Accelerate loop."""
