"""A script of an example, as `python script argv` would run it, but in this process: imports take seconds."""

import contextlib
import io
import logging
import runpy
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState


@dataclass
class Result:
    code: int | str | None
    out: str
    err: str
    names: dict[str, Any] = field(default_factory=dict)  # the script's globals, if it did not exit

    @property
    def last_error(self) -> str:
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


@contextlib.contextmanager
def own_logging() -> Iterator[None]:
    """Undo what the code inside sets on loggers: levels, handlers and whether records go on to the root.

    A script does this for its process, and a Trainer sets the level of transformers from `log_level`.
    """
    named = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in (logging.root, *named)]
    try:
        yield
    finally:
        for logger, level, handlers, propagate in before:
            logger.setLevel(level)
            logger.handlers[:], logger.propagate = handlers, propagate


def call(script: Path, *argv: object) -> Result:
    """Run `script`, and return what it printed, its exit code and its globals."""
    before = sys.argv, list(sys.path)
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    names: dict[str, Any] = {}
    try:
        sys.argv = [str(script), *map(str, argv)]
        with own_logging(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            names = runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit_:
        code = exit_.code
    finally:
        sys.argv, sys.path[:] = before
        AcceleratorState._reset_state(reset_partial_state=True)
    return Result(code, out.getvalue(), err.getvalue(), names)
