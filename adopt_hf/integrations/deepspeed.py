"""ADOPT under DeepSpeed: by name in its config, in every ZeRO stage, offloaded, and never replaced.

A config that works, in Python:

    config = adopt_hf.integrations.deepspeed.config(stage=2, offload="optimizer")
    TrainingArguments(..., optim="adopt", deepspeed=config)            or DeepSpeedPlugin(hf_ds_config=config)
"""

import base64
import copy
import functools
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from adopt_hf.algorithm import HYPERPARAMETERS
from adopt_hf.integrations import compat, zero
from adopt_hf.integrations.after_import import when_imported, when_imported_no_more
from adopt_hf.integrations.deepspeed_adam import offload_states, offloads, one_cycle, replacements
from adopt_hf.memory import OFFLOAD
from adopt_hf.optimizer import ADOPT, ADOPTW, is_adopt_optimizer
from adopt_hf.param_groups import embeddings
from adopt_hf.state import formats

logger = logging.getLogger("adopt_hf")

KEYS = (
    *("lr", "betas"),
    *(name for name in HYPERPARAMETERS if name not in ("lr", "beta1", "beta2")),
    *("backend", "capturable"),
    *formats.OPTIONS,
)
CLASSES: dict[str, type[ADOPT]] = {"adopt": ADOPT, "adoptw": ADOPTW}  # "type" of a block, in any case
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def register() -> None:
    """Teach DeepSpeed what ADOPT is, once it is imported. A second call does nothing."""
    when_imported("deepspeed", _register_now)


def unregister() -> None:
    """Undo `register()`."""
    when_imported_no_more("deepspeed", lambda: compat.unwrap_deepspeed(is_adopt_optimizer))


def _register_now() -> None:
    reason = compat.deepspeed_mismatch()
    if reason is None:
        compat.wrap_deepspeed(CLASSES.values(), _initialize, _engine, zero.save_checkpoint, zero.load_checkpoint)
        compat.wrap_deepspeed_adams(one_cycle, offload_states)
    else:
        compat.wrap_deepspeed_to_refuse(functools.partial(_refuse, reason))


# -- the config --------------------------------------------------------------------------------------------------------


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
    """A DeepSpeed config that works with ADOPT.

    "auto" is filled in by the Trainer and by Accelerate; `deepspeed.initialize` alone wants numbers.

    Args:
        stage: of ZeRO: 0 shards nothing, 1 the optimizer state, 2 the gradients too, 3 the parameters too.
        offload: to the CPU: None, "optimizer" (from stage 1 on), "parameters" (those and the optimizer; stage 3).
        nvme_path: a folder on a local disk, to offload to instead of the CPU's memory; stage 3.
        precision: "auto", "fp32", "bf16" or "fp16".
        train_micro_batch_size_per_gpu: sequences a process and forward pass.
        gradient_accumulation_steps: micro-batches a step.
        gradient_clipping: the largest norm of the gradient; 0: none.
        optimizer: hyperparameters of ADOPT, for an "optimizer" block of type ADOPT; None: no block, the optimizer
            comes from the script (`optim="adopt"`, or an ADOPT given to `prepare` or `initialize`). Under the Trainer
            that block builds an ADOPTW, elsewhere what its type says: "ADOPT" or "ADOPTW".

    Raises:
        ValueError: a value that is not allowed, or a combination that DeepSpeed does not have; says what is.
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
    """Whether the DeepSpeed config has an "optimizer" block that names ADOPT or ADOPTW, in any case."""
    block = config.get("optimizer")
    return isinstance(block, Mapping) and str(block.get("type", "")).lower() in CLASSES


def is_auto(value: object) -> bool:
    """Whether a value of a DeepSpeed config is "auto". (An array cannot be compared with a text.)"""
    return isinstance(value, str) and value == "auto"


def block_kwargs(config: Mapping[str, Any], auto_is_filled: bool = False) -> dict[str, Any]:
    """What the "optimizer" block of a DeepSpeed config passes to ADOPT; an "auto" that is left there means "not set".

    Args:
        config: with an "optimizer" block for ADOPT.
        auto_is_filled: "auto" is allowed for every key, since the caller fills it in.

    Raises:
        ValueError: an unknown key, a value out of range, or an "auto" that only the Trainer and Accelerate can fill.
    """
    given = dict(config["optimizer"].get("params") or {})
    for key in given:
        if key not in KEYS:
            raise ValueError(
                f"DeepSpeed config: optimizer.params has the unknown key {key!r}; ADOPT's are {', '.join(KEYS)}"
            )
    for key in ("lr", "weight_decay"):
        if is_auto(given.get(key)) and not auto_is_filled:
            raise ValueError(
                f"DeepSpeed config: optimizer.params.{key} is 'auto', which the Trainer and Accelerate fill in and "
                "deepspeed.initialize alone does not: write a number"
            )
    kwargs = {key: value for key, value in given.items() if not is_auto(value)}
    try:
        checked = ADOPT([{"params": []}], **kwargs).defaults
    except ValueError as error:
        raise ValueError(f"DeepSpeed config: optimizer.params: {error}") from None
    return {key: checked[key] for key in kwargs}  # plain numbers, since DeepSpeed writes its config as JSON


def forget_auto(config: dict[str, Any], but: Sequence[str] = ()) -> None:
    """Take what is "auto" in ADOPT's block out of it, in place: ADOPT's own numbers are used then."""
    params = config["optimizer"].get("params") or {}
    config["optimizer"]["params"] = {k: v for k, v in params.items() if not is_auto(v) or k in but}


def keep_adopt(config: dict[str, Any]) -> None:
    """Say in the DeepSpeed config, in place, that the optimizer is not to be replaced where it is offloaded.

    Raises:
        ValueError: the config asks for the opposite, or for something that only works with another optimizer.
    """
    refused = replacements(config)
    if refused:
        raise ValueError(f"the optimizer is ADOPT, and {'; and '.join(refused)}, or train with another optimizer")
    if not offloads(config):
        return
    if config.get("zero_force_ds_cpu_optimizer") is True:
        raise ValueError(
            'the optimizer is ADOPT, and "zero_force_ds_cpu_optimizer": true in the DeepSpeed config asks for '
            "DeepSpeedCPUAdam in its place: remove that line"
        )
    config["zero_force_ds_cpu_optimizer"] = False


# -- deepspeed.initialize ----------------------------------------------------------------------------------------------


def _initialize(original: Any, *args: Any, **kwargs: Any) -> Any:
    """`deepspeed.initialize` for which ADOPT is one of its own optimizers."""
    call = inspect.signature(original).bind(*args, **kwargs)
    given, where = _config_of(call.arguments)
    optimizer = call.arguments.get("optimizer")
    if given is None:
        return original(*args, **kwargs)  # which says what a config can be
    adopted = dict(given)
    if optimizer is None and is_adopt_block(adopted):
        cls = CLASSES[adopted["optimizer"]["type"].lower()]
        optimizer = functools.partial(_adopt_of_block, cls, call.arguments["model"], **block_kwargs(adopted))
        del adopted["optimizer"]
    elif (
        callable(optimizer)
        and not isinstance(optimizer, torch.optim.Optimizer)
        and (offloads(adopted) or replacements(adopted) or isinstance(adopted.get("optimizer"), Mapping))
    ):
        # Whether to keep it, to refuse it, or to speak of it depends on what it makes.
        parameters = call.arguments.get("model_parameters")
        parameters = list(call.arguments["model"].parameters() if parameters is None else parameters)
        call.arguments |= {"model_parameters": parameters, "optimizer": optimizer(parameters)}
        optimizer = call.arguments["optimizer"]
    _check_block(adopted, optimizer)
    if _makes_adopt(optimizer):
        keep_adopt(adopted)
        compat.support_in_zero(_class_of(optimizer))
        call.arguments["optimizer"] = optimizer
        if where == "args":
            without = copy.copy(call.arguments["args"])
            without.deepspeed_config = None
            call.arguments |= {"args": without, "config": adopted}
        else:
            call.arguments[where] = adopted
    return original(*call.args, **call.kwargs)


def _check_block(config: Mapping[str, Any], optimizer: Any) -> None:
    """Say so if DeepSpeed passes over the "optimizer" block of `config`, since it was given `optimizer`.

    Raises:
        ValueError: If the block asks for ADOPT, and `optimizer` is another one.
    """
    block = config.get("optimizer")
    if optimizer is None or not isinstance(block, Mapping):
        return
    if _makes_adopt(optimizer):
        _warn_of_block(str(block.get("type")))
    elif is_adopt_block(config):
        raise ValueError(
            f'the "optimizer" block of the DeepSpeed config asks for {block["type"]}, and deepspeed.initialize was '
            f"given {type(optimizer).__name__}, which DeepSpeed would train with: leave out the optimizer argument to "
            'train with ADOPT, or remove the "optimizer" block'
        )


@functools.cache  # once a process
def _warn_of_block(name: str) -> None:
    logger.warning(
        'deepspeed.initialize was given ADOPT, and a config with an "optimizer" block of type %s: DeepSpeed trains '
        "with the ADOPT that it was given, and the block has no effect. Remove the block",
        name,
    )


def _engine(original: Any, engine: Any, *args: Any, **kwargs: Any) -> None:
    """The constructor of an engine, after which its ADOPT knows the model's tensors."""
    original(engine, *args, **kwargs)
    if is_adopt_optimizer(getattr(engine, "basic_optimizer", None)):
        zero.follow(engine)


def _config_of(arguments: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The config of a call of `deepspeed.initialize` as a dictionary, and the name of the argument that it came in."""
    for where in ("config", "config_params"):
        if arguments.get(where) is not None:
            return _loaded(arguments[where]), where
    in_args = getattr(arguments.get("args"), "deepspeed_config", None)
    return (None if in_args is None else _loaded(in_args)), "args"


def _loaded(config: Any) -> dict[str, Any] | None:
    """A DeepSpeed config as a dictionary: from one, a file, or its text in base64. None for what DeepSpeed refuses."""
    if isinstance(config, dict):
        return config
    import hjson  # DeepSpeed reads its configs with it
    from deepspeed.runtime.config_utils import dict_raise_error_on_duplicate_keys

    if os.path.isfile(config):
        with open(config, encoding="utf-8") as file:
            return dict(hjson.load(file, object_pairs_hook=dict_raise_error_on_duplicate_keys))
    try:
        return dict(hjson.loads(base64.urlsafe_b64decode(config).decode("utf-8")))
    except (UnicodeDecodeError, ValueError):
        return None


def _adopt_of_block(cls: type[ADOPT], model: Any, params: Any, **kwargs: Any) -> ADOPT:
    """The optimizer of a config's block, whose embeddings keep float32 moments."""
    formats.keep_float32(embeddings(model))
    return cls(compat.expert_groups(params), **kwargs, float32_apart=True)


def _makes_adopt(optimizer: Any) -> bool:
    made = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    return made is _adopt_of_block or is_adopt_optimizer(made)


def _class_of(optimizer: Any) -> type:
    """The class of the ADOPT that `_makes_adopt` has found: of another copy of the module, it is another class."""
    made = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    if not is_adopt_optimizer(made):
        return cast(type, optimizer.args[0])  # of _adopt_of_block
    return made if isinstance(made, type) else type(made)


def _refuse(reason: str, original: Any, *args: Any, **kwargs: Any) -> Any:
    """`deepspeed.initialize` of a DeepSpeed that is not known: ADOPT is an error, the rest is left alone."""
    everything = [*args, *kwargs.values()]
    if any(_makes_adopt(x) or (isinstance(x, Mapping) and is_adopt_block(x)) for x in everything):
        raise ImportError(reason)
    return original(*args, **kwargs)
