"""ADOPT in transformers: the names of `optim`, the optimizer that the Trainer builds, and the Trainer's DeepSpeed."""

ARGUMENTS = "transformers.training_args"
TRAINER = "transformers.trainer"
HANDLERS = "transformers.trainer_optimizer"  # the Trainer imports it
DEEPSPEED = "transformers.integrations.deepspeed"
MODULES = (ARGUMENTS, TRAINER, DEEPSPEED)  # the modules that are patched
