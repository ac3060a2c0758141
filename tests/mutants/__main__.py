"""Run the mutants and print a table: `python -m tests.mutants [NAME ...]`; the exit code is 0 if all are killed."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mutants import catalog
from tests.mutants.mutant import check
from tests.mutants.runner import KILLED, BaselineError, Result, run

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the names of mutants (default: all of them)")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of one mutant (default: 600)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once (default: 1)")
    parser.add_argument("--trust", action="store_true", help="the tests are known to pass: do not run them first")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    args = parser.parse_args(arguments)
    check(catalog.MUTANTS)
    chosen = [m for m in catalog.MUTANTS if not args.names or any(part in m.name for part in args.names)]
    if not chosen:
        parser.error(f"no mutant has one of {', '.join(args.names)} in its name: --list prints all names")
    if args.list:
        print("\n".join(f"{mutant.name}: {mutant.why}" for mutant in chosen))
        return 0
    start, results = time.monotonic(), list[Result]()
    try:
        for result in run(ROOT, chosen, args.limit, args.jobs, args.trust):
            results.append(result)
            print(f"[{len(results)}/{len(chosen)}] {line(result)}", flush=True)
    except BaselineError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return report(results, time.monotonic() - start)


def line(result: Result) -> str:
    """One line of a result."""
    return f"{result.verdict:16s} {result.mutant.name:40s} {result.seconds:4.0f} s  {result.said}"


def report(results: Sequence[Result], seconds: float) -> int:
    """Print what is left alive or could not be judged, and the share that died; returns the exit status."""
    left = [result for result in results if result.verdict != KILLED]
    for result in left:
        print(f"\n{line(result)}\n    {result.mutant.file}: {result.mutant.why}")
    killed = len(results) - len(left)
    print(f"\n{killed} of {len(results)} mutants die ({100 * killed / len(results):.0f} %), {seconds:.0f} s")
    return int(bool(left))


if __name__ == "__main__":
    sys.exit(main())
