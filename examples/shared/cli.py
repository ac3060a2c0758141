"""Settings from a YAML config and the command line, and errors of one line."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from accelerate import PartialState
from transformers import HfArgumentParser

from adopt_hf.integrations.checkpoints import AlreadyFinishedError, DiskFullError, after_interrupt

output_dir: Path | None = None  # of the run, once it is known


class InputError(ValueError):
    """Something the user gave cannot be used. The text is one line, names it and says what is allowed."""


class Parser(HfArgumentParser):
    """HfArgumentParser whose errors are one line: the usage of 150 arguments would bury the message."""

    source = ""

    def error(self, message: str) -> NoReturn:
        one_line = " ".join(str(message).split())
        self.exit(2, f"{self.prog}: error: {self.source}{one_line}\n")


def nearest(name: str, names: Iterable[str]) -> str:
    """'; did you mean ...?' for a mistyped name, or nothing."""
    matches = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


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
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)
