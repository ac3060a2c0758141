"""DeepSpeed configs: one that works with ADOPT, ADOPT's "optimizer" block, and the settings that are refused."""

import json
from collections.abc import Mapping
from typing import Any

from adopt_hf.hyperparameters import OPTIONS
from adopt_hf.identity import is_adopt_optimizer
from adopt_hf.integrations.deepspeed.refused import REPLACEMENTS
from adopt_hf.memory import OFFLOAD
from adopt_hf.optimizer import ADOPT, ADOPTW

CLASSES: dict[str, type[ADOPT]] = {"adopt": ADOPT, "adoptw": ADOPTW}  # by "type" of a block, in lower case
FILLED = ("lr", "weight_decay")  # where the block has "auto", the Trainer and Accelerate fill these in
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def config(
    stage: int,
    *,
    offload: str | None = None,
    nvme_path: str | None = None,
    precision: str = "auto",
    train_micro_batch_size_per_gpu: int | str = "auto",
    gradient_accumulation_steps: int | str = "auto",
    gradient_clipping: float | str = "auto",
    optimizer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a DeepSpeed config that works with ADOPT.

    The Trainer and Accelerate fill in "auto". `deepspeed.initialize` by itself needs numbers.

    Args:
        stage: The ZeRO stage. 0 shards nothing, 1 the optimizer state, 2 also the gradients, 3 also the parameters.
        offload: What to keep in CPU memory: None, "optimizer" (stage 1 or higher), or "parameters" (these and the
            optimizer; stage 3).
        nvme_path: A folder on a local disk to offload to, instead of CPU memory (stage 3).
        precision: "auto", "fp32", "bf16" or "fp16".
        train_micro_batch_size_per_gpu: Sequences per process and forward pass.
        gradient_accumulation_steps: Micro-batches per step.
        gradient_clipping: The largest norm of the gradient. 0 means no clipping.
        optimizer: Hyperparameters of ADOPT for an "optimizer" block of type ADOPT. None: no block, the optimizer comes
            from the script (`optim="adopt"`, or an ADOPT given to `prepare` or `initialize`). Under the Trainer the
            block builds an ADOPTW, elsewhere the class that its type names: "ADOPT" or "ADOPTW".

    Raises:
        ValueError: If a value is not allowed, or DeepSpeed does not have the combination. The message says what is
            allowed.
    """
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ValueError(f"stage must be 0, 1, 2 or 3, got {stage!r}")
    if offload not in OFFLOAD:
        raise ValueError(f"offload must be one of {', '.join(map(repr, OFFLOAD))}, got {offload!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if offload is not None and stage == 0:
        raise ValueError(f"offload={offload!r} needs stage 1, 2 or 3, got stage=0")
    if offload == "parameters" and stage != 3:
        raise ValueError(f"offload='parameters' needs stage 3, got stage={stage}")
    if nvme_path is not None and (offload is None or stage != 3):
        raise ValueError(f"nvme_path needs stage 3 and an offload, got stage={stage}, offload={offload!r}")

    optimization: dict[str, Any] = {"stage": stage}
    target: dict[str, Any] = {"device": "cpu", "pin_memory": True}
    if nvme_path is not None:
        target |= {"device": "nvme", "nvme_path": nvme_path}
    if offload is not None:
        optimization["offload_optimizer"] = dict(target)
    if offload == "parameters":
        optimization["offload_param"] = dict(target)
    if stage == 3:
        optimization["stage3_gather_16bit_weights_on_model_save"] = True
    result: dict[str, Any] = {
        "zero_optimization": optimization,
        "bf16": {"enabled": "auto" if precision == "auto" else precision == "bf16"},
        "fp16": {"enabled": "auto" if precision == "auto" else precision == "fp16"},
        "train_micro_batch_size_per_gpu": train_micro_batch_size_per_gpu,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": gradient_clipping,
    }
    if train_micro_batch_size_per_gpu == "auto":
        result["train_batch_size"] = "auto"
    if offload is not None:
        result["zero_force_ds_cpu_optimizer"] = False
    if optimizer is not None:
        result["optimizer"] = {"type": "ADOPT", "params": dict(optimizer)}
        result["optimizer"]["params"] |= block_kwargs(result, auto_is_filled=True)
    return result


def is_adopt_block(config: Mapping[str, Any]) -> bool:
    """Return whether the DeepSpeed config has an "optimizer" block that names ADOPT or ADOPTW, in any case."""
    block = config.get("optimizer")
    return isinstance(block, Mapping) and str(block.get("type", "")).lower() in CLASSES


def is_auto(value: object) -> bool:
    """Return whether a value of a DeepSpeed config is "auto". An array cannot be compared with a string."""
    return isinstance(value, str) and value == "auto"


def block_kwargs(config: Mapping[str, Any], auto_is_filled: bool = False) -> dict[str, Any]:
    """Return the arguments that the "optimizer" block of a DeepSpeed config has for ADOPT. An "auto" means "not set".

    Args:
        config: A DeepSpeed config with an "optimizer" block for ADOPT.
        auto_is_filled: Whether "auto" is allowed for every key, because the caller fills it in.

    Raises:
        ValueError: If a key is unknown, a value is out of range, or only the Trainer and Accelerate can fill in an
            "auto".
    """
    given = dict(config["optimizer"].get("params") or {})
    for key in given:
        if key not in OPTIONS:
            raise ValueError(
                f"DeepSpeed config: optimizer.params has the unknown key {key!r}; ADOPT's keys are {', '.join(OPTIONS)}"
            )
    for key in FILLED:
        if is_auto(given.get(key)) and not auto_is_filled:
            raise ValueError(
                f"DeepSpeed config: optimizer.params.{key} is 'auto', which the Trainer and Accelerate fill in, and "
                "deepspeed.initialize by itself does not: write a number"
            )
    kwargs = {key: value for key, value in given.items() if not is_auto(value)}
    try:
        checked = ADOPT([{"params": []}], **kwargs).defaults
    except ValueError as error:
        raise ValueError(f"DeepSpeed config: optimizer.params: {error}") from None
    return {key: checked[key] for key in kwargs}  # plain numbers, since DeepSpeed writes its config as JSON


def forget_auto(config: dict[str, Any]) -> None:
    """Remove each "auto" that Accelerate does not fill in from ADOPT's block, in place. ADOPT's defaults hold then."""
    params = config["optimizer"].get("params") or {}
    config["optimizer"]["params"] = {k: v for k, v in params.items() if not is_auto(v) or k in FILLED}


def keep_adopt(config: dict[str, Any]) -> None:
    """Set in the DeepSpeed config, in place, that an offloaded optimizer is not replaced.

    Raises:
        ValueError: If the config asks for the opposite, or for something that only works with another optimizer.
    """
    refused = replacements(config)
    if refused:
        raise ValueError(f"the optimizer is ADOPT, and {'; and '.join(refused)}, or train with another optimizer")
    if not offloads(config):
        return
    if config.get("zero_force_ds_cpu_optimizer") is True:
        raise ValueError(
            'the optimizer is ADOPT, and "zero_force_ds_cpu_optimizer": true in the DeepSpeed config asks for '
            "DeepSpeedCPUAdam instead: remove that line"
        )
    config["zero_force_ds_cpu_optimizer"] = False


def replacements(config: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each setting of a DeepSpeed config with which ADOPT would not make the step."""
    found = []
    for path, asks, what, if_offloaded in REPLACEMENTS:
        value: Any = config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None or value == "auto" or not asks(value):
            continue
        if if_offloaded and not offloads(config):
            continue
        line = f'"{path[-1]}": {json.dumps(value, default=str)}'
        where = "".join(f' in "{key}"' for key in reversed(path[:-1]))
        found.append(f"{line}{where} of the DeepSpeed config {what}: remove that line")
    return found


def offload_device(config: Mapping[str, Any]) -> str:
    """Return the device that the DeepSpeed config offloads the optimizer to: "none", "cpu" or "nvme"."""
    optimization = config.get("zero_optimization")
    if not isinstance(optimization, Mapping):  # DeepSpeed allows true and false, too
        return "none"
    target = optimization.get("offload_optimizer") or {}
    device = target.get("device") or "none"
    return "cpu" if device == "none" and optimization.get("cpu_offload") else str(device)


def offloads(config: Mapping[str, Any]) -> bool:
    """Return whether the DeepSpeed config offloads the optimizer."""
    return offload_device(config) != "none"


def is_on_nvme(engine: Any) -> bool:
    """Return whether `engine` is a DeepSpeed engine whose optimizer is an ADOPT with its state on NVMe."""
    return is_adopt_optimizer(getattr(engine, "basic_optimizer", None)) and bool(engine.zero_nvme_offload_optimizer())
