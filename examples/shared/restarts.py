"""Continue a run by itself after torchrun has restarted its processes.

If a process ends, `torchrun --max-restarts N` starts all processes again with the same arguments. `accelerate launch
--max_restarts N` does the same. The folder of a run therefore names the launchers that have trained in it, one for each
machine. If one of them starts the script again, the folder is its own, and no option has to say so.
"""

import json
import logging
import os
import socket
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from adopt_hf.integrations.checkpoints import to_resume
from adopt_hf.integrations.checkpoints.folders import last_complete, set_aside

logger = logging.getLogger("adopt_hf")

LAUNCHERS = "_launchers.json"  # `push_to_hub` leaves out names with an underscore


def launcher() -> str | None:
    """Return a name of the torchrun that has started this process, the same after each restart. None without one."""
    folder, found, _ = os.environ.get("TORCHELASTIC_ERROR_FILE", "").rpartition("/attempt_")
    return f"{socket.gethostname()}:{folder}" if found else None


def is_restart(output_dir: Path) -> bool:
    """Return whether a launcher of this run has trained in `output_dir` before. All processes call this."""
    present = _launchers()
    decision = [bool(present & _noted(output_dir))]
    broadcast_object_list(decision)
    return decision[0]


def note(output_dir: Path) -> None:
    """Note the launchers of this run in its folder `output_dir`. All processes call this."""
    present = _launchers()
    if present and PartialState().is_main_process:
        unfinished = output_dir / f"{LAUNCHERS}.unfinished"
        unfinished.write_text(json.dumps(sorted(present | _noted(output_dir)), indent=1) + "\n", encoding="utf-8")
        unfinished.replace(output_dir / LAUNCHERS)


def checkpoint(output_dir: Path, asked: str | None) -> Path | None:
    """Return the checkpoint with which a restarted run continues, or None if it begins again.

    The main process decides. A folder without a complete checkpoint gets another name, and nothing is deleted.

    Args:
        output_dir: The run's folder.
        asked: `resume_from_checkpoint` of the first start. If it is a path, the run begins there.
    """
    found: list[Path | None] = [None]
    if PartialState().is_main_process:
        found[0], skipped = last_complete(output_dir)
        for incomplete, reason in skipped if found[0] is not None else ():
            logger.warning("skipping %s, which is incomplete: %s", incomplete, reason)
        if found[0] is None and output_dir.exists():
            restarts = max(1, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "1")))
            logger.warning("%s", set_aside(output_dir, restarts))
    broadcast_object_list(found)
    if found[0] is None and asked is not None and asked.lower() not in ("true", "last", "false"):
        return to_resume(output_dir, asked)
    return found[0]


def _launchers() -> set[str]:
    """Return the launchers of all processes. No process asks the others if it was not started by torchrun."""
    own = launcher()
    return set() if own is None else {name for name in gather_object([own]) if name is not None}


def _noted(output_dir: Path) -> set[str]:
    try:
        return set(json.loads((output_dir / LAUNCHERS).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return set()
