"""Run a Trainer script under several optimizers, learning rates and seeds, and compare what they reach."""

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adopt_hf.commands.compare.plan import Plan

DASHES = "--"


def own_words(words: list[str]) -> int:
    """Return how many of the words after `compare` are its own: those before `--`."""
    if DASHES in words:
        return words.index(DASHES)
    return len(words) if {"-h", "--help"} & set(words) else 0  # without `--` main says what is missing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `adopt-hf compare` takes."""
    parser.add_argument(
        "--optims",
        metavar="NAMES",
        default="adopt,adamw_torch_fused",
        help="names of `optim`, with commas between; the first AdamW is what the others are compared with "
        "(default: adopt,adamw_torch_fused)",
    )
    parser.add_argument(
        "--lrs", metavar="NUMBERS", help="learning rates, with commas between (default: the --learning_rate of COMMAND)"
    )
    parser.add_argument("--lr-sweep", action="store_true", help="five learning rates around the one of --lrs")
    parser.add_argument("--seeds", metavar="N", default="3", help="run the seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--jobs", metavar="N", default="1", help="runs at once (default: 1)")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path("runs/compare"), help="default: runs/compare"
    )


def main(options: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> None:
    """Compare. Bad input is one line on stderr and ends the process with 2."""
    from adopt_hf.commands.compare.plan import InputError

    try:
        failed = _compare(options, rest)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt:  # before the first run
        parser.exit(130, f"{parser.prog}: stopped, nothing has been changed\n")
    if failed:
        parser.exit(failed)


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    """Run and write everything. Return the exit code."""
    from adopt_hf.commands.compare import plan as plans

    command = _command(rest)
    if importlib.util.find_spec("rich") is None:
        raise plans.InputError("its table needs the package rich, which is not installed: write pip install rich")
    plan = _plan(options, command)
    jobs = plans.parse_count(options.jobs, "--jobs")
    program = plans.program(command)

    from adopt_hf.commands.compare import files, runner, table  # they import rich
    from adopt_hf.commands.compare.folder import Folder

    folder = Folder(options.output)

    def write(work: runner.Runner) -> None:
        files.write_all(folder, plan, work)

    with folder.taken(plan):
        try:
            with table.LiveTable(plan) as live:
                work = runner.Runner(folder, program, plan.runs(), jobs, live.show, write)
                work.run_all()
        except plans.InputError:
            folder.give_up()
            raise
        except runner.Stopped as stopped:
            files.write_all(folder, plan, work)
            print(
                f"\nstopped: {len(work.done)} of {len(work.runs)} runs have ended. The same command goes on from there",
                flush=True,
            )
            return 128 + stopped.number
        found = files.write_all(folder, plan, work)
        table.show_results(found)
        print(f"\n{folder.path / files.PAGE}")
        return 1 if found["runs_failed"] else 0


def _command(rest: list[str]) -> list[str]:
    """Return the words of the user's command.

    Raises:
        InputError: If there is no `--` in front of it, or nothing behind.
    """
    from adopt_hf.commands.compare.plan import InputError

    if not rest or rest[0] != DASHES:
        raise InputError(
            "-- is missing in front of the command: write adopt-hf compare --optims NAMES --lrs NUMBERS -- COMMAND ..."
        )
    if not rest[1:]:
        raise InputError("there is no command after --: write what you train with, such as -- python train.py ARGS...")
    return rest[1:]


def _plan(options: argparse.Namespace, command: list[str]) -> "Plan":
    """Return the plan that the options describe."""
    from adopt_hf.commands.compare import plan as plans

    text = options.lrs or plans.given_lr(command)
    if text is None:
        raise plans.InputError("--lrs is missing: write one learning rate or several, as in --lrs 3e-4,1e-3")
    lrs = plans.parse_lrs(text)
    if options.lr_sweep:
        lrs = plans.swept(lrs)
    seeds = plans.parse_count(options.seeds, "--seeds")
    from transformers.training_args import OptimizerNames  # seconds, so that other mistakes are found first

    optims = plans.parse_optims(options.optims, [name.value for name in OptimizerNames])
    return plans.Plan(tuple(command), optims, lrs, seeds, options.lr_sweep)
