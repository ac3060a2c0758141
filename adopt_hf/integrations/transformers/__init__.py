"""ADOPT in transformers: the names of `optim`, what the Trainer makes of them, and the Trainer's DeepSpeed."""

ARGUMENTS, DEEPSPEED, TRAINER = (
    "transformers.training_args",
    "transformers.integrations.deepspeed",
    "transformers.trainer",
)
