"""The commands of `adopt-hf` and `python -m adopt_hf`: a row and a module each, with `add_arguments` and `main`."""

import argparse
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from adopt_hf.commands import compare, convert, env, memory, run


class Command(NamedTuple):
    """A row of the table.

    Args:
        module: The module with `add_arguments` and `main`. `main` gets the options, and the words that are not its own.
        help: The text in the list of commands.
        description: The text in the command's own help.
        usage: The usage line, if argparse's is not right.
        own_words: Function that returns how many of the words after the name are the command's own. None: all.
    """

    module: ModuleType
    help: str
    description: str
    usage: str | None = None
    own_words: Callable[[list[str]], int] | None = None


COMMANDS = {
    "run": Command(
        run,
        "run an unmodified script or command with optim='adopt' registered",
        "Run a Python script, a command or, with -m, a module with optim='adopt' registered with transformers, and in "
        "every Python that it starts, too: adopt-hf run trl sft --optim adopt.",
        usage="%(prog)s [-m | --] WHAT [ARGS ...]",
        own_words=run.own_words,
    ),
    "env": Command(
        env,
        "versions, which backend runs where, which patches are in place, or why not",
        "Versions, which backend runs on each device, and which functions of other packages are replaced, with the "
        "reason where one cannot.",
    ),
    "memory": Command(
        memory,
        "how many bytes of optimizer state each process holds",
        "The bytes of optimizer state (exp_avg, exp_avg_sq and a float32 copy of the weights, if there is one) that "
        "each process holds. Without --zero and --fsdp, as under DDP, each holds all of it.",
    ),
    "compare": Command(
        compare,
        "run your own Trainer script under several optimizers, learning rates and seeds, and compare",
        "Run a Trainer script under each optimizer, learning rate and seed. COMMAND gets --optim, --learning_rate, "
        "--seed and --output_dir at its end. The same call goes on with a set that was stopped. DIR gets results.json, "
        "results.md and the page report.html; docs/compare.md has the rules.",
        usage="%(prog)s [OPTIONS] -- COMMAND [ARGS ...]",
        own_words=compare.own_words,
    ),
    "convert": Command(
        convert,
        "turn a checkpoint of AdamW into one of ADOPT, or back",
        "Write a checkpoint that resumes with ADOPT from one of AdamW (torch's, also fused, or bitsandbytes' in 8 "
        "bits; of the Trainer or Accelerate, FSDP's or a universal one of DeepSpeed), or the other way round. "
        "CHECKPOINT stays as it is, unless --in-place is given; docs/migrate.md has the equations.",
    ),
}


def main() -> None:
    """Do what the command line says."""
    prog = "adopt-hf" if os.path.basename(sys.argv[0]).startswith("adopt-hf") else "python -m adopt_hf"
    parser = argparse.ArgumentParser(prog=prog, description="Tools around the ADOPT optimizer.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, row in COMMANDS.items():
        command = commands.add_parser(name, usage=row.usage, help=row.help, description=row.description)
        row.module.add_arguments(command)
        command.set_defaults(main=row.module.main, parser=command)
    argv = sys.argv[1:]
    own_words = COMMANDS[argv[0]].own_words if argv and argv[0] in COMMANDS else None
    end = len(argv) if own_words is None else 1 + own_words(argv[1:])
    options = parser.parse_args(argv[:end])
    options.main(options, argv[end:], options.parser)
