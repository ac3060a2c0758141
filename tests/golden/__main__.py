"""Rewrite golden files: `python -m tests.golden [trajectories] [api] [saved] [zero] [--new-files]`, all without a name.

This is allowed for one reason: a change of results, of the interface or of a format that is made on purpose. State the
change in CHANGELOG.md in the same commit, and look at every line of the diff: a row that the change does not explain is
a fault. A redesign, a faster kernel or a test that fails on one machine is no reason.

The files in tests/golden/saved_files and zero_files stand for the checkpoints of users, and stay as the earlier commit
wrote them. `saved` and `zero` write only what a run gives that goes on from them. `--new-files` writes the files, too,
and is for a case that is added. After a change of format keep the earlier files, under another name, with a test that
still loads them.
"""

import argparse

from tests.golden import api, saved, trajectories, zero

WRITERS = {"trajectories": trajectories.write, "api": api.write, "saved": saved.write, "zero": zero.write}
WRITERS_OF_FILES = {"saved": saved.write_files, "zero": zero.write_files}


def main() -> None:
    """Read the command line, and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="Rewrite golden files.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(WRITERS)} (default: all)")
    parser.add_argument("--new-files", action="store_true", help="write the files of users in checkpoints again")
    options = parser.parse_args()
    unknown = set(options.names) - WRITERS.keys()
    if unknown:
        parser.error(f"there is no golden file {', '.join(sorted(unknown))}; write any of {', '.join(WRITERS)}")
    for name in options.names or WRITERS:
        if options.new_files and name in WRITERS_OF_FILES:
            WRITERS_OF_FILES[name]()
        WRITERS[name]()


if __name__ == "__main__":
    main()
