"""ADOPT in transformers: the names of `optim`, what the Trainer makes of them, and the Trainer's DeepSpeed."""

ARGUMENTS = "transformers.training_args"
TRAINER = "transformers.trainer"
DEEPSPEED = "transformers.integrations.deepspeed"
MODULES = (ARGUMENTS, TRAINER, DEEPSPEED)  # that are patched
