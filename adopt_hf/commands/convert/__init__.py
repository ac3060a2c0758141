"""Turn a checkpoint of AdamW into one of ADOPT, or back: `adopt-hf convert CHECKPOINT --to adopt`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `adopt-hf convert` takes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="the folder, such as run/checkpoint-500")
    parser.add_argument("--to", required=True, choices=("adopt", "adamw"), help="the optimizer that is to go on")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--output", metavar="DIR", type=Path, help="the new checkpoint (default: run-adopt/checkpoint-500)"
    )
    where.add_argument("--in-place", action="store_true", help="replace CHECKPOINT, in one step at the end")
    parser.add_argument(
        "--optim_args",
        metavar="TEXT",
        help='options of the new optimizer, as in TrainingArguments, such as "beta2=0.99"; of AdamW betas and eps only',
    )


def main(options: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> None:
    """Convert. What cannot be converted is one line on stderr, and ends the process with 2; nothing is changed then."""
    from adopt_hf.commands.convert import conversion  # with it comes the Trainer, which takes seconds

    try:
        said = conversion.convert(
            options.checkpoint, options.to, options.output, in_place=options.in_place, optim_args=options.optim_args
        )
    except conversion.ERRORS as error:
        parser.exit(2, f"{parser.prog}: error: {conversion.in_a_line(error)}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: stopped, nothing has been changed\n")
    print(said)
