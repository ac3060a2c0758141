"""What a run is told: a YAML config and command-line overrides, which win.

The names are the fields of `RecipeArguments` and of TRL's `SFTConfig` (a `transformers.TrainingArguments`) and
`ModelConfig`. Whatever is wrong is one line on stderr and exit code 2.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from accelerate import PartialState
from transformers.integrations import get_reporting_integration_callbacks
from trl import ModelConfig, SFTConfig, TrlParser

from adopt_hf.backends import cache
from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.integrations.checkpoints import AlreadyFinishedError, DiskFullError, after_interrupt
from adopt_hf.integrations.transformers import optim_args

HERE = Path(__file__).parent
DEFAULT_CONFIG = HERE / "configs" / "stdlib.yaml"


output_dir: Path | None = None  # of the run, once it is known


class InputError(ValueError):
    """Something the user gave cannot be used. The text is one line, names it and says what is allowed."""


@dataclass
class RecipeArguments:
    """The instructions, the model where none is named, and what is done when training is over."""

    dataset_name: str = field(
        default="stdlib",
        metadata={
            "help": "'stdlib' for the documented functions of Python's standard library, or what datasets.load_dataset "
            "takes: a name on the Hub, a local folder, or 'json', 'csv', 'parquet' together with --data_files."
        },
    )
    data_files: list[str] | None = field(default=None, metadata={"help": "Files for the 'json', 'csv', ... loaders."})
    prompt_column: str = field(default="prompt", metadata={"help": "The column with the instruction."})
    input_column: str | None = field(
        default=None, metadata={"help": "A column whose text, where there is one, is put below the instruction."}
    )
    completion_column: str = field(default="completion", metadata={"help": "The column with the response."})
    empty_completions: str = field(
        default="error",
        metadata={
            "help": "What an empty response is: an 'error', or something to 'keep', to learn to say nothing. Alpaca "
            "has some."
        },
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "Share of the records held out where the data set has no validation split."}
    )
    max_train_records: int | None = field(default=None, metadata={"help": "Train on this many records, evenly spaced."})
    max_eval_records: int | None = field(default=None, metadata={"help": "Evaluate on this many, evenly spaced."})
    base_config: str = field(
        default=str(HERE / "configs" / "base.yaml"),
        metadata={"help": "Where no --model_name_or_path is given, a small LLaMA is pretrained as this file says."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "That LLaMA is kept here; default $XDG_CACHE_HOME/adopt_hf, ~/.cache/adopt_hf."},
    )
    evaluate: bool = field(
        default=False, metadata={"help": "Score the model before and after on multiple-choice questions (evaluate.py)."}
    )
    questions: int = field(default=400, metadata={"help": "How many; 0 for all there are."})
    chat_prompt: str = field(default="", metadata={"help": "What the tuned model is asked at the end; empty: nothing."})

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise InputError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}")
        for name in ("max_train_records", "max_eval_records"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.empty_completions not in ("error", "keep"):
            raise InputError(f"empty_completions must be 'error' or 'keep', got {self.empty_completions!r}")
        if self.questions < 0:
            raise InputError(f"questions must not be negative, got {self.questions}")
        if self.dataset_name == "stdlib" and self.data_files:
            raise InputError("data_files are for dataset_name json, csv, ...; dataset_name is 'stdlib'")
        if self.dataset_name in ("json", "csv", "parquet", "text") and not self.data_files:
            raise InputError(f"dataset_name {self.dataset_name!r} needs --data_files")
        self.cache_dir = str(cache_dir(self.cache_dir))


def cache_dir(asked: str | None = None) -> Path:
    return Path(asked).expanduser() if asked else cache.user_cache() / "adopt_hf"


class Parser(TrlParser):
    """TrlParser whose errors are one line: the usage of 300 arguments would bury the message."""

    def error(self, message: str) -> NoReturn:
        fail(self.prog, message)

    def set_defaults_with_config(self, **settings: Any) -> list[str]:
        """Everything but lists, mappings and null as text, which argparse checks as it checks the command line."""
        optional = {
            field.name
            for kind in self.dataclass_types
            for field in dataclasses.fields(kind)
            if field.default is None or "None" in str(field.type)
        }
        for name, value in settings.items():
            if value is None and name not in optional:
                raise InputError(f"config file: {name} must have a value, got null")
            if isinstance(value, list):
                settings[name] = [str(item) for item in value]
            elif value is not None and not isinstance(value, dict):
                settings[name] = str(value)
        return super().set_defaults_with_config(**settings)


def fail(prog: str, message: object) -> NoReturn:
    print(f"{prog}: error: {' '.join(str(message).split())}", file=sys.stderr)
    sys.exit(2)


def parse(argv: Sequence[str] | None, description: str | None) -> tuple[RecipeArguments, SFTConfig, ModelConfig]:
    """Parse and check `argv` (default: the command line's); without `--config` configs/stdlib.yaml is read."""
    global output_dir
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser((RecipeArguments, SFTConfig, ModelConfig), description=description, allow_abbrev=False)
    argv = [
        part
        for argument in argv
        for part in (argument.split("=", 1) if argument.startswith("--config=") else [argument])
    ]
    if argv and argv[0].endswith((".yaml", ".yml")):
        argv.insert(0, "--config")
    if "--config" not in argv:
        argv += ["--config", str(DEFAULT_CONFIG)]
    config = next(iter(argv[argv.index("--config") + 1 :]), None) or parser.error("--config names no file")
    parser.set_defaults(optim="adopt", output_dir=os.path.join("runs", f"llama-{Path(config).stem}"))
    try:
        recipe, training, model = parser.parse_args_and_config(argv)
        check(training, model)
    except OSError as error:
        known = ", ".join(sorted(p.name for p in DEFAULT_CONFIG.parent.glob("*.yaml")))
        parser.error(f"config file {config}: {error.strerror}; {DEFAULT_CONFIG.parent} has {known}")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        parser.error(f"config file {config} is not valid YAML: {error}")
    except (ValueError, TypeError, RuntimeError) as error:
        parser.error(str(error))
    output_dir = Path(training.output_dir)
    return recipe, training, model


def check(args: SFTConfig, model: ModelConfig) -> None:
    """Raise ValueError for what would be noticed only after the data has been prepared. Finds the chat template."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    running = PartialState().num_processes
    if launched != running:
        # Without --use_cpu accelerate looks for GPUs, finds none, and lets every process train alone.
        raise InputError(f"{launched} processes were launched but each would train alone; on CPU pass --use_cpu")
    for name in ("learning_rate", "weight_decay"):
        HYPERPARAMETERS["lr" if name == "learning_rate" else name].check(name, getattr(args, name))
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(args, name)}")
    if args.max_steps == 0:
        raise InputError("max_steps must be at least 1, or -1 for num_train_epochs, got 0")
    get_reporting_integration_callbacks(args.report_to)
    if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
        raise InputError("load_in_4bit and load_in_8bit need use_peft: quantised weights are not trained")
    if args.optim == "adopt" and "loraplus_lr_ratio" in optim_args.parse(args.optim_args) and not model.use_peft:
        raise InputError("loraplus_lr_ratio in optim_args needs use_peft: it is for LoRA's matrices")
    if isinstance(model.lora_target_modules, str) and model.lora_target_modules != "all-linear":
        # TRL makes a text of a list of one, which PEFT takes as a pattern for the whole name: nothing would match.
        model.lora_target_modules = [model.lora_target_modules]
    if args.chat_template_path is not None:
        found = [p for p in (Path(args.chat_template_path), HERE / args.chat_template_path) if p.is_file()]
        if not found:
            known = ", ".join(sorted(f"templates/{p.name}" for p in (HERE / "templates").glob("*.jinja")))
            raise InputError(f"chat_template_path {args.chat_template_path} is no file; the recipe has {known}")
        args.chat_template_path = str(found[0])


def run(main: Callable[[], None]) -> None:
    """Call `main`. An `InputError` or a full disk becomes one line on stderr and exit code 2.

    A run that has finished already is one line on stdout and exit code 0. Ctrl-C is one line on stderr, the command
    that goes on with the run, and exit code 130. The main process says it, and no helper of a run.
    """
    try:
        main()
    except KeyboardInterrupt:
        if output_dir is not None and os.environ.get("RANK", "0") == "0":
            print(f"\n{after_interrupt(sys.argv, output_dir)}", file=sys.stderr)
        sys.exit(130)
    except AlreadyFinishedError as finished:
        if PartialState().is_main_process:
            print(finished)
    except (InputError, DiskFullError) as error:
        fail(Path(sys.argv[0]).name, error)
