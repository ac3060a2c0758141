"""Run a script of this recipe in a process of its own, while the processes of the run wait."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate import PartialState

# Variables that launchers set. With them the script would act as one of the launched processes.
PREFIXES = ("ACCELERATE_", "FSDP_", "GROUP_RANK", "MV2_", "OMPI_", "PMI_", "ROLE_", "TORCHELASTIC_")
NAMES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def run(script: str, *argv: object, unless: Path | None = None) -> None:
    """Run `script` in a new process, started by the main process. All processes return when it has ended.

    If the script fails, exit with its code: it has printed the error.

    Args:
        script: The name of a script next to this file.
        argv: The arguments of the script.
        unless: A path. If it exists, the script is not run. Only the main process looks.
    """
    state = PartialState()
    if state.is_main_process and not (unless is not None and unless.exists()):
        environment = {
            name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith(PREFIXES)
        }
        # Only the first GPU: the Trainer would put a copy of the model on each visible one.
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        # Threads that wait by spinning slow each other down twenty times if another process shares the cores.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        command = [sys.executable, str(Path(__file__).parent / script), *map(str, argv)]
        code = subprocess.run(command, env=environment).returncode
        if code != 0:
            sys.exit(code)
    state.wait_for_everyone()
