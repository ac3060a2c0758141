"""python -m adopt_hf run script.py ARGS...  or  python -m adopt_hf run -m package.module ARGS..."""

import argparse
import sys

from adopt_hf.integrations import run


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m adopt_hf",
        description="Tools around the ADOPT optimizer.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "run",
        usage="python -m adopt_hf run [-m] SCRIPT [ARGS ...]",
        help="run an unmodified script with optim='adopt' registered",
        description="Run a Python script, or with -m a module, with optim='adopt' registered with transformers. "
        "Behind a launcher: accelerate launch -m adopt_hf run SCRIPT [ARGS ...].",
    )
    command.add_argument("-m", dest="module", action="store_true", help="SCRIPT is a module name, as in python -m")
    command.add_argument("script", metavar="SCRIPT")
    argv = sys.argv[1:]
    script_end = 3 if argv[1:2] == ["-m"] else 2  # what comes after is the script's own, options and all
    options = parser.parse_args(argv[:script_end])
    start = run.run_module if options.module else run.run_script
    start(options.script, argv[script_end:], error=command.error)


if __name__ == "__main__":
    main()
