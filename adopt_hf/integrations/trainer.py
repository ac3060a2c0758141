"""Alias of a function, under the path that the training_args.bin of earlier versions names."""

from adopt_hf.integrations.transformers.names import _optimizer_name

__all__ = ["_optimizer_name"]
