"""The interface that users rely on: names, signatures, options, commands, paths, and the keys of what is saved.

Annotations and help texts are left out: they are words, and a redesign may improve them.
"""

import argparse
import importlib
import inspect
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import adopt_hf
from adopt_hf.integrations.deepspeed import config
from tests.golden import files
from tests.golden.cases import SAVED, Run
from tests.golden.saved import Model, case_of

NAME = "api"
OPTIMIZERS = ("ADOPT", "ADOPTW", "LayerwiseADOPT", "LayerwiseADOPTW")
METHODS = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict", "release")
# Documented paths below the package, and those that pickles and old training_args.bin name.
PATHS = (
    "adopt_hf.optimizer.ADOPT",
    "adopt_hf.optimizer.ADOPTW",
    "adopt_hf.layerwise.LayerwiseADOPT",
    "adopt_hf.layerwise.LayerwiseADOPTW",
    "adopt_hf.integrations.checkpoints.MARK",
    "adopt_hf.integrations.deepspeed.config",
    "adopt_hf.integrations.memory.state_bytes",
    "adopt_hf.integrations.trainer._optimizer_name",
)
MODULES = ("adopt_hf.integrations.checkpoints",)  # all that is public in them
NO_OPTIONS = ("params", "beta3", "foreach", "amsgrad", "regroup", "float32_apart")  # refused in texts and in blocks
LORAPLUS = ("loraplus_lr_ratio", "loraplus_lr_embedding")
CONFIGS: tuple[dict[str, Any], ...] = (
    {"stage": 0},
    {"stage": 2, "offload": "optimizer", "optimizer": {"lr": "auto", "beta2_warmup": True}},
    {"stage": 3, "offload": "parameters", "nvme_path": "disk", "precision": "bf16"},
)


def snapshot() -> dict[str, Any]:
    """Return all of it in the types of JSON."""
    return {
        "adopt_hf": {name: _described(getattr(adopt_hf, name)) for name in sorted(adopt_hf.__all__)},
        "paths": {path: _described(_at(path)) for path in PATHS},
        "modules": {name: dict(_public(name)) for name in MODULES},
        "optimizers": {name: _optimizer(getattr(adopt_hf, name)) for name in OPTIMIZERS},
        "optim names": [name.value for name in OptimizerNames if "adopt" in name.value],
        "keys of optim_args": [key for key in _candidates() if _is_taken_by_optim_args(key)],
        "keys of a DeepSpeed block": [key for key in _candidates() if _is_taken_by_block(key)],
        "DeepSpeed configs": [{"arguments": given, "config": config(**given)} for given in CONFIGS],
        "state_bytes(1e9, mode='zero2', world_size=8, offload='optimizer')": _usage(),
        "commands": _commands(),
        "saved states": {case.name: _saved(case.name) for case in SAVED},
        "environment variables": _variables(),
    }


def write() -> None:
    """Write the golden file."""
    files.write(NAME, snapshot())


def _at(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _described(thing: Any) -> Any:
    if isinstance(thing, type) and issubclass(thing, Exception):
        return f"an exception, {', '.join(base.__name__ for base in thing.__bases__)}"
    return _signature(thing) if callable(thing) else repr(thing)


def _signature(thing: Callable[..., Any]) -> str:
    """Return the signature without annotations."""
    signature = inspect.signature(thing)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _public(module: str) -> Iterator[tuple[str, Any]]:
    """Yield the public functions and classes that a module or package defines."""
    for name, thing in sorted(vars(importlib.import_module(module)).items()):
        if not name.startswith("_") and f"{getattr(thing, '__module__', None)}.".startswith(f"{module}."):
            yield name, _described(thing)


def _optimizer(cls: type[torch.optim.Optimizer]) -> dict[str, Any]:
    """Return the methods of a class, and the param group that it makes."""
    optimizer = cls([torch.nn.Parameter(torch.zeros(2))])
    return {
        "base classes": [
            base.__name__ for base in cls.__mro__ if base.__module__.startswith(("adopt_hf", "torch.optim"))
        ],
        "methods": {name: _signature(getattr(cls, name)) for name in METHODS if hasattr(cls, name)},
        "param group": {name: repr(x) for name, x in optimizer.param_groups[0].items() if name != "params"},
    }


def _candidates() -> list[str]:
    group = adopt_hf.ADOPT([torch.nn.Parameter(torch.zeros(2))]).param_groups[0]
    return sorted({*group, *NO_OPTIONS, *LORAPLUS, "beta1", "beta2"})


def _default_of(key: str) -> Any:
    defaults = adopt_hf.ADOPT([torch.nn.Parameter(torch.zeros(2))]).defaults
    return defaults.get(key, 0.5)


def _is_taken_by_optim_args(key: str) -> bool:
    """Return whether a text with this key is read. The keys of LoRA+ are, and then need another model."""
    args = TrainingArguments(output_dir="run", optim="adopt", optim_args=f"{key}={_default_of(key)}", use_cpu=True)
    try:
        adopt_hf.trainer_kwargs(args, Model())
    except ValueError as error:
        return "unknown key" not in str(error)
    return True


def _is_taken_by_block(key: str) -> bool:
    try:
        config(2, optimizer={key: _default_of(key)})
    except ValueError:
        return False
    return True


def _usage() -> dict[str, Any]:
    usage = _at("adopt_hf.integrations.memory.state_bytes")(1e9, mode="zero2", world_size=8, offload="optimizer")
    return {name: getattr(usage, name) for name in ("moments", "master", "total", "held_by", "gpu", "cpu")}


def _saved(name: str) -> dict[str, Any]:
    """Return the keys of a state_dict, of its states and of its groups."""
    found: dict[str, Any] = {}

    def at_half(run: Run) -> Run:
        state_dict = run.optimizer.state_dict()
        found["keys"] = ", ".join(state_dict)
        for i, state in state_dict["state"].items():
            found[f"state of parameter {i}"] = ", ".join(f"{key} {_form(x)}" for key, x in state.items())
        found["keys of a param group"] = ", ".join(state_dict["param_groups"][0])
        return run

    case_of(name).run("reference", at_half)
    return found


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} on {value.device.type}"
    return type(value).__name__


class _ParserFoundError(Exception):
    """The parser of a command, in place of what it would do."""


def _commands() -> dict[str, Any]:
    """Return the commands of `python -m adopt_hf` with what each takes, from the parser itself."""

    def found(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        raise _ParserFoundError(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", found), mock.patch.object(sys, "argv", ["-m"]):
        try:
            runpy.run_module("adopt_hf", run_name="__main__")
        except _ParserFoundError as error:
            (parser,) = error.args
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: _options(parser) for name, parser in commands.choices.items()}


def _options(parser: argparse.ArgumentParser) -> dict[str, Any]:
    excluded = [[action.dest for action in group._group_actions] for group in parser._mutually_exclusive_groups]
    options = {" ".join(action.option_strings) or action.dest: _option(action) for action in parser._actions}
    return {"options": options, "that exclude each other": excluded}


def _option(action: argparse.Action) -> str:
    """Return what differs from argparse's own defaults, in one line."""
    choices = None if action.choices is None else list(action.choices)
    shown = {
        "kind": type(action).__name__.strip("_").removesuffix("Action"),
        "type": getattr(action.type, "__name__", None),
        "nargs": action.nargs,
        "choices": choices,
        "default": action.default,
        "required": action.required or None,
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


def _variables() -> list[str]:
    package = Path(adopt_hf.__file__).parent
    sources = [path for suffix in ("py", "c", "h") for path in package.rglob(f"*.{suffix}")]
    return sorted({name for path in sources for name in re.findall(r"\bADOPT_HF_[A-Z_]+", path.read_text("utf-8"))})
