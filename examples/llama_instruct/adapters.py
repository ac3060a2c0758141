"""Adapters of PEFT: whether they fit a model, and models with one from disk."""

import json
from pathlib import Path
from typing import Any

import torch
from arguments import InputError
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

RUN = "run.json"  # what train.py notes in its output folder


def read_config(model: str, **kwargs: Any) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(model, **kwargs)
    except (OSError, ValueError) as error:
        raise InputError(f"model {model!r} cannot be loaded: {' '.join(str(error).split())}") from error


def modules_of(config: PreTrainedConfig) -> dict[str, torch.Size | None]:
    """The names of all modules of the model that `config` describes, with the shape of the weight, if it has one."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"a {config.model_type} is no causal language model that transformers knows")
    with torch.device("meta"):
        model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    weights = ((name, getattr(module, "weight", None)) for name, module in model.named_modules())
    return {name: weight.shape if isinstance(weight, torch.Tensor) else None for name, weight in weights}


def check_targets(config: PreTrainedConfig, targets: list[str] | str | None) -> None:
    """Raise InputError for a name in `targets` that no module has; PEFT is content if one of them is found."""
    if targets is None or targets == "all-linear":
        return
    modules = modules_of(config)
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            linear = sorted({name.rsplit(".", 1)[-1] for name, shape in modules.items() if shape and len(shape) == 2})
            raise InputError(
                f"lora_target_modules: no module of this {config.model_type} is called {target!r}; it has "
                f"{', '.join(linear)}, or write all-linear"
            )


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG_NAME).is_file()


def base_of(folder: str | Path) -> str:
    """The model that the one in `folder` was tuned from: what the adapter says, or what train.py has noted."""
    path = Path(folder) / (CONFIG_NAME if is_adapter(folder) else RUN)
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        base = written["base_model_name_or_path" if is_adapter(folder) else "base"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} does not say what it was tuned from ({path.name}: {error}); name it") from None
    return str(base)


def check_adapter(folder: str | Path, base: str) -> None:
    """Raise InputError if the adapter in `folder` is one for another model than `base`, naming what does not fit."""
    modules = modules_of(read_config(base))
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    if not path.is_file():
        raise InputError(f"adapter {folder} has no {path.name}")
    with safe_open(path, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no dict
    for name, shape in shapes.items():
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if not module or part not in ("A.weight", "B.weight"):
            continue
        # A is (rank, in), B is (out, rank), where the weight is (out, in).
        if module not in modules:
            raise InputError(f"adapter {folder} is not for {base}: it adapts {module}, which that does not have")
        weight = modules[module]
        theirs, ours = (shape[1], weight[1]) if part == "A.weight" else (shape[0], weight[0])
        if theirs != ours:
            side = "inputs" if part == "A.weight" else "outputs"
            raise InputError(f"adapter {folder} is not for {base}: {module} has {ours} {side} there, {theirs} here")


def load(folder: str, base: str | None = None, **kwargs: Any) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """The model in `folder`, or the base with the adapter in `folder` on it, and its tokenizer.

    Args:
        base: another place where an adapter's base is than the adapter says.
        kwargs: for `from_pretrained`: dtype, device_map.
    """
    config = read_config(base or base_of(folder)) if is_adapter(folder) else read_config(folder)
    if is_adapter(folder):
        base = base or base_of(folder)
        check_adapter(folder, base)
        model = AutoModelForCausalLM.from_pretrained(base, config=config, **kwargs)
        model = PeftModel.from_pretrained(model, folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, **kwargs)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
