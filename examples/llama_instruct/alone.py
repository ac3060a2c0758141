"""A script of this recipe in a process of its own, while the processes of the run wait."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate import PartialState

# What launchers tell their processes. With it the script would believe to be one of them.
PREFIXES = ("ACCELERATE_", "FSDP_", "GROUP_RANK", "MV2_", "OMPI_", "PMI_", "ROLE_", "TORCHELASTIC_")
NAMES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def run(script: str, *argv: object, unless: Path | None = None) -> None:
    """Run `script`, beside this file, by the main process; all processes return when it has ended.

    Args:
        unless: there is nothing to run if this exists, which is for one process to say.

    Exits where it fails; what was wrong it has said itself.
    """
    state = PartialState()
    if state.is_main_process and not (unless is not None and unless.exists()):
        environment = {
            name: value for name, value in os.environ.items() if name not in NAMES and not name.startswith(PREFIXES)
        }
        # Of several GPUs the first: with all of them visible the Trainer would put a copy of the model on each.
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        # Threads that wait by spinning slow each other down twenty times where something else shares the cores.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        command = [sys.executable, str(Path(__file__).parent / script), *map(str, argv)]
        code = subprocess.run(command, env=environment).returncode
        if code != 0:
            sys.exit(code)
    state.wait_for_everyone()
