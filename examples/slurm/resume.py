"""Print the value of `--resume_from_checkpoint` for a start of a job: "last" or "false".

It is "last" if the run's folder has a complete checkpoint. A job that was stopped before its first one was complete has
left a folder that a new run refuses. At a restart such a folder gets another name; nothing is deleted.
"""

import argparse
import sys
from pathlib import Path

from adopt_hf.integrations.checkpoints.folders import last_complete, set_aside


def value(output_dir: Path, restarts: int) -> str:
    """Return "last" or "false", and rename a folder without a complete checkpoint.

    Args:
        output_dir: The run's folder.
        restarts: How often the job was requeued. At its first start, 0, a folder that exists is the user's, and it is
            not renamed: the recipe says what it holds.
    """
    if last_complete(output_dir)[0] is not None:
        return "last"
    if restarts > 0 and output_dir.exists():
        print(set_aside(output_dir, restarts), file=sys.stderr)
    return "false"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--restarts", type=int, required=True, help="SLURM_RESTART_COUNT, 0 at the first start")
    options = parser.parse_args()
    print(value(options.output_dir, options.restarts))


if __name__ == "__main__":
    main()
