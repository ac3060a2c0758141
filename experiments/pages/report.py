"""Write every produced passage of the pages again, from the code and the kept results: `python -m experiments report`.

`python -m experiments report --check` changes nothing, names what is stale, and exits with 1 if something is.
"""

import argparse
from collections.abc import Sequence

from experiments.pages import registry


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the passages. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="Change nothing, and name the stale passages.")
    args = parser.parse_args(arguments)
    try:
        stale = registry.stale()
        for line in stale:
            print(line if args.check else line.replace(" is stale: run `make docs-numbers`", " is written again"))
        if not args.check:
            registry.rebuild()
    except (OSError, ValueError, KeyError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return int(args.check and bool(stale))
