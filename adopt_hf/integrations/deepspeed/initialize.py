"""`deepspeed.initialize` and the engine that it makes, which treat ADOPT as one of DeepSpeed's own optimizers."""

import base64
import copy
import functools
import inspect
import logging
import os
from collections.abc import Mapping
from typing import Any, cast

import torch

from adopt_hf.identity import is_adopt_optimizer
from adopt_hf.integrations.deepspeed import gradients, internals
from adopt_hf.integrations.deepspeed.ds_config import (
    CLASSES,
    block_kwargs,
    is_adopt_block,
    keep_adopt,
    offloads,
    replacements,
)
from adopt_hf.optimizer import ADOPT
from adopt_hf.param_groups import embeddings
from adopt_hf.state import formats

logger = logging.getLogger("adopt_hf")


def initialize(original: Any, *args: Any, **kwargs: Any) -> Any:
    """Let `deepspeed.initialize` treat ADOPT as one of DeepSpeed's own optimizers.

    Raises:
        ValueError: If the config asks for another optimizer, or has a setting that only works with another one.
    """
    call = inspect.signature(original).bind(*args, **kwargs)
    given, where = _config_of(call.arguments)
    optimizer = call.arguments.get("optimizer")
    if given is None:
        return original(*args, **kwargs)  # DeepSpeed says what a config can be
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
        # A function that makes the optimizer is called here, because only its result shows whether that is an ADOPT.
        parameters = call.arguments.get("model_parameters")
        parameters = list(call.arguments["model"].parameters() if parameters is None else parameters)
        call.arguments |= {"model_parameters": parameters, "optimizer": optimizer(parameters)}
        optimizer = call.arguments["optimizer"]
    _check_block(adopted, optimizer)
    made = adopt_class(optimizer)
    if made is not None:
        keep_adopt(adopted)
        internals.support_in_zero(made)
        call.arguments["optimizer"] = optimizer
        if where == "args":
            without = copy.copy(call.arguments["args"])
            without.deepspeed_config = None
            call.arguments |= {"args": without, "config": adopted}
        else:
            call.arguments[where] = adopted
    return original(*call.args, **call.kwargs)


def _check_block(config: Mapping[str, Any], optimizer: Any) -> None:
    """Warn if DeepSpeed ignores the "optimizer" block of `config`, because it was given `optimizer`.

    Raises:
        ValueError: If the block asks for ADOPT, and `optimizer` is another one.
    """
    block = config.get("optimizer")
    if optimizer is None or not isinstance(block, Mapping):
        return
    if adopt_class(optimizer) is not None:
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


def make_engine(original: Any, engine: Any, *args: Any, **kwargs: Any) -> None:
    """Construct an engine, and tell its ADOPT of the model's tensors."""
    original(engine, *args, **kwargs)
    if is_adopt_optimizer(getattr(engine, "basic_optimizer", None)):
        gradients.follow(engine)


def _config_of(arguments: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return the config of a call of `deepspeed.initialize` as a dictionary, and the name of its argument."""
    for where in ("config", "config_params"):
        if arguments.get(where) is not None:
            return _loaded(arguments[where]), where
    in_args = getattr(arguments.get("args"), "deepspeed_config", None)
    return (None if in_args is None else _loaded(in_args)), "args"


def _loaded(config: Any) -> dict[str, Any] | None:
    """Return a DeepSpeed config (a dictionary, a file or base64 text) as a dictionary. None for anything else."""
    if isinstance(config, dict):
        return config
    import hjson  # DeepSpeed reads its configs with it

    if os.path.isfile(config):
        with open(config, encoding="utf-8") as file:
            return dict(hjson.load(file, object_pairs_hook=internals.refuse_duplicate_keys()))
    try:
        return dict(hjson.loads(base64.urlsafe_b64decode(config).decode("utf-8")))
    except (UnicodeDecodeError, ValueError):
        return None


def _adopt_of_block(cls: type[ADOPT], model: Any, params: Any, **kwargs: Any) -> ADOPT:
    """Return the optimizer of a config's block. Its embeddings keep float32 moments."""
    formats.keep_float32(embeddings(model))
    return cls(internals.expert_groups(params), **kwargs, float32_apart=True)


def adopt_class(optimizer: Any) -> type | None:
    """Return the class of the ADOPT that `optimizer` is or makes, or None. It may be another copy of the module's."""
    made = optimizer.func if isinstance(optimizer, functools.partial) else optimizer
    if made is _adopt_of_block:
        return cast(type, optimizer.args[0])
    if not is_adopt_optimizer(made):
        return None
    return made if isinstance(made, type) else type(made)


def asks_for_adopt(argument: Any) -> bool:
    """Return whether an argument of `deepspeed.initialize` is an ADOPT, makes one, or is a config with its block."""
    return adopt_class(argument) is not None or (isinstance(argument, Mapping) and is_adopt_block(argument))
