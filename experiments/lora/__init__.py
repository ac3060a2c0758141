"""LoRA with ADOPT and AdamW over learning rates and seeds."""
