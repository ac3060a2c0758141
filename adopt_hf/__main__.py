"""python -m adopt_hf run script.py ARGS... | run -m package.module ARGS... | env --check | memory --params 7e9 ..."""

import argparse
import sys

from adopt_hf.integrations import environment, memory_command, run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m adopt_hf",
        description="Tools around the ADOPT optimizer.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run_command = commands.add_parser(
        "run",
        usage="python -m adopt_hf run [-m] SCRIPT [ARGS ...]",
        help="run an unmodified script with optim='adopt' registered",
        description="Run a Python script, or with -m a module, with optim='adopt' registered with transformers. "
        "Behind a launcher: accelerate launch -m adopt_hf run SCRIPT [ARGS ...].",
    )
    run_command.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module name, as in python -m")
    run_command.add_argument("script", metavar="SCRIPT")

    env_command = commands.add_parser(
        "env",
        help="versions, and which backend runs where, or why not",
        description="Versions, and which backend runs on each device, with the reason where one cannot.",
    )
    env_command.add_argument(
        "--check", action="store_true", help="do real steps with every backend on every device, and say PASS or FAIL"
    )
    env_command.add_argument(
        "--time", action="store_true", help="check, and time steps on GPT-2 124M's shapes for a quarter of a minute"
    )

    memory = commands.add_parser(
        "memory",
        help="how many bytes of optimizer state each process holds",
        description="The bytes of optimizer state (exp_avg, exp_avg_sq and a float32 copy of the weights, if there is "
        "one) that each process holds. Without --zero and --fsdp, as under DDP, each holds all of it.",
    )
    memory_command.add_arguments(memory)

    argv = sys.argv[1:]
    end = len(argv)
    if argv[:1] == ["run"]:
        end = 3 if argv[1:2] == ["-m"] else 2  # what comes after is the script's own, options and all
    options = parser.parse_args(argv[:end])
    if options.command == "run":
        start = run.run_module if options.module else run.run_script
        start(options.script, argv[end:], error=run_command.error)
    elif options.command == "env":
        if not options.check and not options.time:
            print(environment.report())
            return
        text, right = environment.checked(timed=options.time)
        print(text)
        sys.exit(0 if right else 1)
    else:
        try:
            print(memory_command.report(options))
        except ValueError as error:
            memory.error(str(error))


if __name__ == "__main__":
    main()
