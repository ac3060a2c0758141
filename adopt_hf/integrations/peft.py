"""Adapters of peft under the Trainer: the param groups of LoRA+ (arXiv 2402.12354), and the precision of loaded ones.

The groups are those of `peft.optimizers.create_loraplus_optimizer`, with two differences, and a test compares them.
Weight decay follows the Trainer's rule. A tensor that ZeRO 3 has partitioned is sorted by the dimensions of the whole
tensor.
"""

import sys
from typing import Any, NamedTuple

from torch import Tensor, nn

from adopt_hf.hyperparameters import HYPERPARAMETERS, LORAPLUS
from adopt_hf.param_groups import is_decayed


class LoraPlus(NamedTuple):
    """The two numbers of LoRA+."""

    lr_ratio: float  # the learning rate of B over that of A, >= 1
    lr_embedding: float  # the learning rate of the LoRA of embeddings


def take_loraplus(values: dict[str, Any]) -> LoraPlus | None:
    """Remove LoRA+'s keys from the result of `optim_args.parse`, in place. Return their values, or None if absent.

    Raises:
        ValueError: If `loraplus_lr_embedding` is given without `loraplus_lr_ratio`.
    """
    ratio, embedding = (values.pop(name, None) for name in LORAPLUS)
    if ratio is None:
        if embedding is not None:
            raise ValueError(
                f"optim_args: loraplus_lr_embedding={embedding} has no meaning without LoRA+: add "
                "loraplus_lr_ratio=16, or another number >= 1"
            )
        return None
    return LoraPlus(ratio, float(HYPERPARAMETERS["loraplus_lr_embedding"].default) if embedding is None else embedding)


def loraplus_groups(
    model: nn.Module | None, loraplus: LoraPlus, lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the trainable parameters of `model`, in groups with the learning rates of LoRA+.

    Args:
        model: Model with LoRA adapters, from `peft.get_peft_model` or `add_adapter`.
        loraplus: Checked numbers of LoRA+.
        lr: Learning rate of A, and of parameters that are neither A nor B. lora_B and vectors get `lr *
            loraplus.lr_ratio`. The LoRA of embeddings gets `loraplus.lr_embedding`.
        weight_decay: Weight decay of the parameters that the Trainer's rule decays.

    Returns:
        Up to six param groups, none of them empty. A comes first, because the Trainer logs the first group's learning
        rate.

    Raises:
        ValueError: If there is no model, if no `lora_B` in it is trained, or if FSDP1 has flattened it.
        ImportError: If peft cannot be imported.
    """
    if model is None:
        raise ValueError(
            "optim_args: loraplus_lr_ratio needs the model, to sort its parameters: write trainer_kwargs(args, model), "
            'or optim="adopt", with which the Trainer gives it'
        )
    try:
        from peft.tuners.lora import Embedding
    except ImportError as error:
        raise ImportError(f"optim_args: loraplus_lr_ratio needs peft (pip install peft): {error}") from error
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if any(getattr(p, "_fsdp_flattened", False) for _, p in trainable):
        raise ValueError(
            "optim_args: loraplus_lr_ratio cannot be used with FSDP1, which flattens the parameters that it has to "
            "tell apart: write fsdp_version: 2"
        )
    if not any("lora_B" in name for name, _ in trainable):
        raise ValueError(
            f"optim_args: loraplus_lr_ratio needs LoRA adapters, and {type(model).__name__} has no parameter named "
            "lora_B with requires_grad=True: give the Trainer peft.get_peft_model(model, peft.LoraConfig(...))"
        )
    rates = {"A": lr, "embedding": loraplus.lr_embedding, "B": lr * loraplus.lr_ratio}
    groups: dict[tuple[str, bool], list[Tensor]] = {(kind, decayed): [] for kind in rates for decayed in (True, False)}
    for name, p in trainable:
        # A LoRA layer holds its parameters in dictionaries: `embed_tokens.lora_embedding_A.default`.
        layer = model.get_submodule(".".join(name.split(".")[:-2]))
        ndim = len(getattr(p, "ds_shape", p.shape))  # ZeRO 3 leaves an empty tensor, and notes the shape
        kind = "embedding" if isinstance(layer, Embedding) else "B" if "lora_B" in name or ndim == 1 else "A"
        groups[kind, is_decayed(model, name)].append(p)
    return [
        {"params": params, "lr": rates[kind], "weight_decay": weight_decay if decayed else 0.0}
        for (kind, decayed), params in groups.items()
        if params
    ]


def keep_precision(original: Any, trainer: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the Trainer that loads adapters. An adapter that the model has keeps its precision."""
    model, peft = trainer.model, sys.modules.get("peft")
    if peft is None or not isinstance(model, peft.PeftModel):
        return original(trainer, *args, **kwargs)
    load = model.load_adapter

    def load_adapter(source: Any, adapter_name: str, *rest: Any, **options: Any) -> Any:
        if adapter_name in model.peft_config:
            options.setdefault("autocast_adapter_dtype", False)
        return load(source, adapter_name, *rest, **options)

    model.load_adapter = load_adapter
    try:
        return original(trainer, *args, **kwargs)
    finally:
        del model.load_adapter
