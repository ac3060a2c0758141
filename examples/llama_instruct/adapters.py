"""Load models with an adapter of PEFT, and check that the adapter fits the model."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from examples.shared.errors import InputError, one_line

RUN = "run.json"  # the base model and the adapter of a run, written by train.py


def read_config(model: str, **kwargs: Any) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(model, **kwargs)
    except (OSError, ValueError) as error:
        raise InputError(f"model {model!r} cannot be loaded: {one_line(error)}") from error


def empty_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model that `config` describes, without memory for its weights."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"model type {config.model_type!r} is not a causal language model of transformers")
    with torch.device("meta"):
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


def check_targets(config: PreTrainedConfig, option: str, targets: list[str] | str | None) -> None:
    """Raise InputError for a name in `targets` that no module has. PEFT raises only if no name is found."""
    if targets is None or targets == "all-linear":
        return
    modules = dict(empty_model(config).named_modules())
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            linear = {name.rsplit(".", 1)[-1] for name, module in modules.items() if isinstance(module, nn.Linear)}
            raise InputError(
                f"{option}: this {config.model_type} has no module called {target!r}; write all-linear, or some of "
                f"{', '.join(sorted(linear))}"
            )


def is_adapter(folder: str | Path) -> bool:
    return (Path(folder) / CONFIG_NAME).is_file()


def base_of(folder: str | Path) -> str:
    """Return the name of the model that the one in `folder` was tuned from. The adapter or train.py has written it."""
    path = Path(folder) / (CONFIG_NAME if is_adapter(folder) else RUN)
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
        base = written["base_model_name_or_path" if is_adapter(folder) else "base"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} does not say what it was tuned from ({path.name}: {error}); pass --base") from None
    return str(base)


def check_adapter(folder: str | Path, base: str) -> None:
    """Raise InputError, which names the weight that does not fit, if the adapter in `folder` is not for `base`."""
    path = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    try:
        with safe_open(path, "pt") as file:
            there = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no dict
        adapter = PeftConfig.from_pretrained(str(folder))
        with torch.device("meta"):
            model = get_peft_model(empty_model(read_config(base)), adapter)
    except (OSError, SafetensorError, TypeError) as error:
        raise InputError(f"adapter {folder} cannot be read: {path.name}: {one_line(error)}") from error
    except ValueError as error:  # raised by PEFT for modules that do not exist
        raise InputError(f"adapter {folder} is not for {base}: {one_line(error)}") from error
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    here = {name: list(weight.shape) for name, weight in weights.items()}
    for name in sorted(here.keys() | {name for name in there if ".lora_" in name}):
        if here.get(name) != there.get(name):
            ours, theirs = (shapes.get(name, "nothing") for shapes in (here, there))
            raise InputError(f"adapter {folder} is not for {base}: it has {theirs} for {name}, which takes {ours}")


def load(folder: str, base: str | None = None, **kwargs: Any) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Return the model and the tokenizer in `folder`. If it holds an adapter, the model is the base with the adapter.

    Args:
        folder: The folder of a model or an adapter, or a name on the Hub.
        base: The base of an adapter, if it is no longer where the adapter says.
        kwargs: Arguments of `from_pretrained`, such as dtype and device_map.

    Raises:
        InputError: If the base cannot be loaded, or the adapter is not for it.
    """
    if base is not None and not is_adapter(folder):
        raise InputError(f"--base needs an adapter, and there is none in {folder}; remove --base")
    base = base_of(folder) if base is None and is_adapter(folder) else base
    config = read_config(base or folder)
    if base is not None:
        check_adapter(folder, base)
        model = AutoModelForCausalLM.from_pretrained(base, config=config, **kwargs)
        model = PeftModel.from_pretrained(model, folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, config=config, **kwargs)
    return model.eval(), AutoTokenizer.from_pretrained(folder)
