"""The settings of a script from a YAML config and the command line, and its errors as one line.

The keys of the YAML file are the fields of the script's dataclasses. The command line has the same names and takes
precedence.
"""

import dataclasses
import difflib
import json
import os
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from accelerate import PartialState
from transformers import HfArgumentParser

import adopt_hf  # noqa: F401  registers optim="adopt"; must come before a parser is built
from adopt_hf.integrations.checkpoints import AlreadyFinishedError, DiskFullError, after_interrupt
from examples.shared import network
from examples.shared.errors import InputError, one_line

output_dir: Path | None = None  # the folder of the run, once it is known


def nearest(name: str, names: Iterable[str]) -> str:
    """Return '; did you mean ...?' for a mistyped name, or an empty text."""
    matches = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


class Parser(HfArgumentParser):
    """An HfArgumentParser with `--config FILE.yaml`, whose errors are one line: the usage has hundreds of arguments.

    Abbreviated names are errors, because they hide typing errors.

    Args:
        classes: The dataclasses. One of them is a TrainingArguments.
        description: The text of `--help`.
        config: The config that is read without `--config`. Its folder holds the known ones.
        runs: The default of `output_dir`, in which {} stands for the config's name. None: the script has no default.
    """

    def __init__(self, classes: Iterable[Any], description: str | None, config: Path, runs: str | None = "runs/{}"):
        super().__init__(classes, description=description, allow_abbrev=False)
        self.config, self.runs = config, runs
        self.source = ""  # the origin of the values that are being checked
        self.overrides: dict[str, Any] = {}  # the settings that differ from the defaults, after `parse`
        self.fields = {f.name: f for cls in classes for f in dataclasses.fields(cls) if f.init}
        self.types = {name: kind for cls in classes for name, kind in typing.get_type_hints(cls).items()}
        self.add_argument(
            "--config",
            metavar="FILE.yaml",
            default=str(config),
            help="A file of settings. The command line takes precedence. A bare file may be the first argument.",
        )
        self.set_defaults(optim="adopt", output_dir=None)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {self.source}{one_line(message)}\n")

    def parse(self, argv: Sequence[str] | None = None, check: Callable[..., None] | None = None) -> tuple[Any, ...]:
        """Return one instance of each dataclass. If something is wrong, exit with code 2 and one line on stderr.

        Args:
            argv: The arguments, by default those of the command line. The first may be a bare FILE.yaml.
            check: A function that is called with the instances. What it raises is reported in the same way.
        """
        global output_dir
        if not torch.accelerator.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no accelerator
        argv = list(sys.argv[1:] if argv is None else argv)
        if argv and argv[0].endswith((".yaml", ".yml")):
            argv.insert(0, "--config")
        plain = vars(self.parse_known_args([])[0])
        config = self.parse_known_args(argv)[0].config
        self.set_defaults(**self.read(config))
        # Once without the command line, so that a bad value in the file is reported as the file's.
        self.source = f"config file {config}: "
        self.parse_known_args([])
        self.source = ""

        values, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].split("=")[0]
            self.error(f"unknown argument {name}{nearest(name.lstrip('-').replace('-', '_'), self.fields)}")
        given = {name: value for name, value in vars(values).items() if name in self.fields}
        self.overrides = {name: value for name, value in given.items() if value != plain[name]}
        if self.runs is not None and values.output_dir is None:
            self.set_defaults(output_dir=self.runs.format(Path(config).stem))
        try:
            network.connect(values)
            *instances, _ = self.parse_args_into_dataclasses(argv, look_for_args_file=False)
            if check is not None:
                check(*instances)
        except (ValueError, TypeError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
            self.error(str(error))
        if self.runs is not None:
            output_dir = Path(next(part.output_dir for part in instances if hasattr(part, "output_dir")))
        return tuple(instances)

    def read(self, path: str) -> dict[str, Any]:
        """Return the settings in the YAML file `path`, as defaults for this parser.

        Everything but lists, mappings and null becomes a string, so that argparse checks a value in a file as it checks
        the same value on the command line.
        """
        try:
            settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            folder = self.config.parent
            known = ", ".join(sorted(file.name for file in folder.glob("*.yaml")))
            self.error(f"config file {path}: {error.strerror}; {folder} has {known}")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"config file {path} is not valid YAML: {error}")
        if settings is None:
            settings = {}
        if not isinstance(settings, dict):
            self.error(f"config file {path} must hold 'name: value' lines, not a {type(settings).__name__}")
        return {key: self.default(path, key, value) for key, value in settings.items()}

    def default(self, path: str, name: str, value: Any) -> Any:
        """Return `value` of the config file `path` as a default for the argument `name`."""
        if name not in self.fields:
            hint = nearest(str(name), self.fields) or "; --help lists what is allowed"
            self.error(f"config file {path}: unknown key {name!r}{hint}")
        kind = str(self.types[name])
        if value is None:
            if "None" not in kind and self.fields[name].default is not None:
                self.error(f"config file {path}: {name} must have a value, got null")
            return None
        for container, what in ((list, "list"), (dict, "mapping")):
            if isinstance(value, container) and container.__name__ not in kind:
                self.error(f"config file {path}: {name} takes one value, got the {what} {value}")
        if isinstance(value, dict):
            return json.dumps(value) if "| str" in kind else value  # TrainingArguments finds the numbers in JSON
        if isinstance(value, list):
            return [str(item) for item in value]
        takes_only_lists = "list" in kind and "str |" not in kind.split("list")[0]
        return [str(value)] if takes_only_lists else str(value)


def run(main: Callable[[], None]) -> None:
    """Call `main`. An `InputError` or a full disk becomes one line on stderr and exit code 2.

    A run that has finished already is one line on stdout and exit code 0. After a lost connection to another process,
    every process prints a line that explains its traceback. Ctrl-C is exit code 130 and one line on
    stderr, the command that goes on with the run. Only the main process prints it, and no script without a run does.
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
        print(f"{Path(sys.argv[0]).name}: error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        explanation = network.explain(error, output_dir)
        if explanation is None:
            raise
        traceback.print_exc()
        print(f"{Path(sys.argv[0]).name}: error: {explanation}", file=sys.stderr, flush=True)
        sys.exit(1)
