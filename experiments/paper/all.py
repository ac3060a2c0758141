"""The paper, rerun: every experiment's offline default, then docs/evidence.md.

python -m experiments paper --quick    # hours on two cores; docs/evidence.md says what each takes
python -m experiments paper --full     # days, GPUs, and data from the Hub

Finished runs are kept in the folder and not run again: an interrupted call goes on.
"""

from pathlib import Path

from experiments.harness import command
from experiments.harness import runs as parts
from experiments.harness.runs import InputError
from experiments.paper import evidence
from experiments.table import PAPER, load


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--experiments",
        nargs="+",
        default=PAPER,
        help=f"Some of {', '.join(PAPER)} (default: all).",
    )
    parser.add_argument("--results", type=Path, default=evidence.RESULTS, help="Folder of the kept runs.")
    parser.add_argument("--page", type=Path, default=evidence.PAGE, help="Page with the markers.")
    args = parser.parse_args()
    folder = command.folder(args)
    try:
        chosen = load(args.experiments)
        wanted = command.with_settings([part for module in chosen for part in module.parts(not args.full)], args.set)
        for module in chosen:
            mine = [part for part in wanted if part.experiment == module.NAME]
            mine = command.missing(mine, args.results) if args.missing else mine
            parts.run(mine, module.one, folder, args.workers)
        evidence.write(load(), folder, args.results, args.page)
    except InputError as error:
        command.fail(error)
