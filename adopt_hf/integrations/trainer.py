"""Another name of a function that the training_args.bin of earlier versions name."""

from adopt_hf.integrations.transformers.names import _optimizer_name

__all__ = ["_optimizer_name"]
