"""The decay rule of `transformers.Trainer`, for custom training loops."""

import re
from typing import Any

from torch import Tensor, nn

from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.state.formats import keep_float32

# The rule of transformers.Trainer.get_decay_parameter_names. A test compares the two.
NO_DECAY_NAMES = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def is_decayed(model: nn.Module, name: str) -> bool:
    """Return whether the Trainer decays the parameter `name`: all parameters but biases and those of norms."""
    *path, _ = name.split(".")
    inside = [model.get_submodule(".".join(path[: depth + 1])) for depth in range(len(path))]
    return not NO_DECAY_NAMES.search(name.lower()) and not any(isinstance(module, nn.LayerNorm) for module in inside)


def embeddings(model: nn.Module) -> list[Tensor]:
    """Return the weights of the embedding layers of `model`."""
    layers = (module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag))
    return [layer.weight for layer in layers]


def param_groups(model: nn.Module, weight_decay: float | None = None) -> list[dict[str, Any]]:
    """Split the trainable parameters of `model` into a decayed and an undecayed group, as the Trainer does.

    Embeddings are marked by `keep_float32`, so their moments stay float32 with `state_bits=8`.

    Args:
        model: Module. Parameters with `requires_grad=False` are left out, and tied parameters appear once.
        weight_decay: Weight decay of the first group, >= 0. The second group (biases, norms) has 0.

    Returns:
        Two param groups for `ADOPT` or any `torch.optim` optimizer, in the order of `model.named_parameters()`.

    Raises:
        TypeError: If `model` is not a module.
        ValueError: If `weight_decay` is missing, negative or not a number, or no parameter of `model` is trainable.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"param_groups takes a module, got a {type(model).__name__}: write param_groups(model, weight_decay=0.1) "
            "and not model.parameters(), because names and types of the layers say which parameters are decayed"
        )
    weight_decay = HYPERPARAMETERS["weight_decay"].check("weight_decay", weight_decay)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(f"{type(model).__name__} has no parameter with requires_grad=True: unfreeze some first")
    keep_float32(embeddings(model))
    return [
        {"params": [p for name, p in trainable if is_decayed(model, name)], "weight_decay": weight_decay},
        {"params": [p for name, p in trainable if not is_decayed(model, name)], "weight_decay": 0.0},
    ]
