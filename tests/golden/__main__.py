"""Rewrite golden files: `python -m tests.golden [trajectories] [api] [saved] [--new-files]`, all three without a name.

This is allowed for one reason: a change of results, of the interface or of a format that is made on purpose. State the
change in CHANGELOG.md in the same commit, and look at every line of the diff: a row that the change does not explain is
a fault. A redesign, a faster kernel or a test that fails on one machine is no reason.

The files in tests/golden/saved_files stand for the checkpoints of users, and stay as the earlier commit wrote them.
`saved` writes only what a run gives that goes on from them. `--new-files` writes the files themselves, when a case
is added. After a change of format keep the earlier files, under another name, with a test that still loads them.
"""

import argparse

from tests.golden import api, saved, trajectories

WRITERS = {"trajectories": trajectories.write, "api": api.write, "saved": saved.write}


def main() -> None:
    """Read the command line, and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Rewrite golden files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(WRITERS)} (default: all)")
    parser.add_argument(
        "--new-files", action="store_true", help="write the files of users in tests/golden/saved_files again"
    )
    options = parser.parse_args()
    unknown = set(options.names) - WRITERS.keys()
    if unknown:
        parser.error(f"there is no golden file {', '.join(sorted(unknown))}; write any of {', '.join(WRITERS)}")
    if options.new_files:
        saved.write_files()
    for name in options.names or WRITERS:
        WRITERS[name]()


if __name__ == "__main__":
    main()
