"""Tune a LLaMA on instructions with TRL: all of its weights, or LoRA."""
