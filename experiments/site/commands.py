"""The reference of the commands: the help of each, as the command line prints it."""

import contextlib
import io
import sys
from unittest import mock

from adopt_hf import commands

WIDTH = "96"  # characters of a line of help


def help_of(*words: str) -> str:
    """Return what `adopt-hf WORDS --help` prints."""
    printed = io.StringIO()
    with (
        mock.patch.dict("os.environ", COLUMNS=WIDTH, NO_COLOR="1"),
        mock.patch.object(sys, "argv", ["adopt-hf", *words, "--help"]),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        commands.main()
    return printed.getvalue().rstrip()


def texts() -> dict[str, str]:
    """Return the page of the commands."""
    parts = [
        "# Commands\n\n`adopt-hf` and `python -m adopt_hf` are the same.\n",
        f"~~~ text\n{help_of()}\n~~~\n",
    ]
    for name, row in commands.COMMANDS.items():
        parts.append(f"## adopt-hf {name}\n\n{row.help[0].upper()}{row.help[1:]}.\n\n~~~ text\n{help_of(name)}\n~~~\n")
    return {"reference/commands.md": "\n".join(parts)}
