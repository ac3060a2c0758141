"""Run a Trainer script under several optimizers, learning rates and seeds, and compare what they reach."""
