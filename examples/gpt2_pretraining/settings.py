"""What a run is told: a YAML config and command-line overrides, checked before anything is written.

The keys of the YAML file are the fields of `ModelArguments`, `DataArguments` and `transformers.TrainingArguments`;
the command line has the same names and wins. Whatever is wrong is one line on stderr and exit code 2.
"""

import argparse
import dataclasses
import json
import os
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

import adopt_hf
from examples.gpt2_pretraining.arguments import DataArguments, ModelArguments
from examples.shared import cli
from examples.shared.cli import InputError, Parser, nearest
from examples.shared.launch import settle_deepspeed

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "stdlib.yaml"
ARGUMENT_CLASSES = (ModelArguments, DataArguments, TrainingArguments)


@dataclass
class Settings:
    """A run's settings, as parsed. `overrides` are those that differ from the defaults, by name."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    overrides: dict[str, Any]


def build_parser(description: str) -> Parser:
    """The parser over all three dataclasses and `--config`. Abbreviated names are refused: they hide typing errors."""
    parser = Parser(ARGUMENT_CLASSES, description=description, allow_abbrev=False)
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        default=str(DEFAULT_CONFIG),
        help="Settings by name; the command line wins. May be given as a bare first argument.",
    )
    parser.set_defaults(optim="adopt", eval_strategy="steps", lr_scheduler_type="cosine", output_dir=None)
    return parser


def field_types() -> dict[str, Any]:
    """Every setting there is, with its type."""
    types: dict[str, Any] = {}
    for cls in ARGUMENT_CLASSES:
        hints = typing.get_type_hints(cls)
        types |= {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}
    return types


def read_config(path: str, parser: Parser) -> dict[str, Any]:
    """The settings in the YAML file `path`, as defaults for `parser`.

    Everything but lists and null becomes a string, so that argparse checks a value in a file as it checks the same
    value on the command line.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(sorted(p.name for p in DEFAULT_CONFIG.parent.glob("*.yaml")))
        parser.error(f"config file {path}: {error.strerror}; {DEFAULT_CONFIG.parent} has {known}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"config file {path} is not valid YAML: {error}")
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        parser.error(f"config file {path} must hold 'name: value' lines, not a {type(settings).__name__}")

    types = field_types()
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in types:
            hint = nearest(str(key), types) or "; --help lists what is allowed"
            parser.error(f"config file {path}: unknown key {key!r}{hint}")
        takes_list = "list" in str(types[key])
        if isinstance(value, list):
            if not takes_list:
                parser.error(f"config file {path}: {key} takes one value, got the list {value}")
            defaults[key] = [str(item) for item in value]
        elif value is None:
            defaults[key] = None
        elif isinstance(value, dict):
            defaults[key] = json.dumps(value)  # what TrainingArguments reads for its dictionaries
        else:
            only_list = takes_list and "str |" not in str(types[key]).split("list")[0]
            defaults[key] = [str(value)] if only_list else str(value)
    return defaults


def parse(argv: Sequence[str] | None, description: str, honoured: frozenset[str] | None = None) -> Settings:
    """Parse and check `argv` (default: the command line's).

    Args:
        argv: arguments; `--config FILE` or a bare `FILE.yaml` in front, otherwise configs/stdlib.yaml is read.
        description: of the script, for `--help`.
        honoured: the fields of TrainingArguments the script acts upon, None for all of them. One that is set and would
            be ignored is an error.

    Exits with code 2 and one line on stderr if something is wrong.
    """
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, where it is installed, warns that it found no other
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv.insert(0, "--config")
    parser = build_parser(description)
    types = field_types()
    plain = vars(parser.parse_known_args([])[0])

    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=parser.prog)
    finder.add_argument("--config", default=str(DEFAULT_CONFIG))
    finder.error = parser.error  # type: ignore[method-assign]
    config = finder.parse_known_args(argv)[0].config
    if not {"-h", "--help"} & set(argv):
        parser.set_defaults(**read_config(config, parser))
        # Once without the command line, so that a bad value in the file is reported as the file's.
        parser.source = f"config file {config}: "
        parser.parse_known_args([])
        parser.source = ""

    values, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        parser.error(f"unknown argument {name}{nearest(name.lstrip('-').replace('-', '_'), types)}")
    overrides = {name: value for name, value in vars(values).items() if name in types and value != plain[name]}
    if honoured is not None:
        training = {f.name for f in dataclasses.fields(TrainingArguments)}
        if ignored := sorted((overrides.keys() & training) - honoured):
            parser.error(f"{', '.join(ignored)}: not supported by {parser.prog}, would be ignored; use train.py")
    if values.output_dir is None:
        parser.set_defaults(output_dir=os.path.join("runs", Path(config).stem))
    try:
        model, data, args, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
        check_training(args)
    except (ValueError, TypeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
        parser.error(str(error))
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # torch warns that there is nothing to pin it for
    cli.output_dir = Path(args.output_dir)
    return Settings(model, data, args, overrides)


def check_training(args: TrainingArguments) -> None:
    """Raise ValueError or TypeError for what the Trainer would notice only after the data has been prepared."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    running = PartialState().num_processes
    if launched != running:
        # Without --use_cpu accelerate looks for GPUs, finds none, and lets every process train alone.
        raise InputError(f"{launched} processes were launched but each would train alone; on CPU pass --use_cpu")
    if isinstance(args.lr_scheduler_kwargs, str):
        raise InputError(f"lr_scheduler_kwargs must be a JSON object, got {args.lr_scheduler_kwargs!r}")
    if args.per_device_train_batch_size < 1 or args.per_device_eval_batch_size < 1:
        raise InputError("per_device_train_batch_size and per_device_eval_batch_size must be at least 1")
    if args.gradient_accumulation_steps < 1:
        raise InputError(f"gradient_accumulation_steps must be at least 1, got {args.gradient_accumulation_steps}")
    if args.logging_strategy != "steps":
        raise InputError(f"logging_strategy must be 'steps', got {args.logging_strategy.value!r}: loss.png is the log")
    get_reporting_integration_callbacks(args.report_to)
    settle_deepspeed(args)

    optimizer_cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    probe = torch.nn.Parameter(torch.zeros(1))
    if issubclass(optimizer_cls, adopt_hf.ADOPT):
        optimizer_cls([probe], **kwargs)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([probe], lr=args.learning_rate),
        num_warmup_steps=0,
        num_training_steps=1,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
