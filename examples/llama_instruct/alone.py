"""A script of this recipe in a process of its own, while the processes of the run wait."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate import PartialState

# What launchers tell their processes. With it the script would believe to be one of them.
OF_LAUNCHERS = ("ACCELERATE_", "FSDP_", "GROUP_", "LOCAL_", "MASTER_", "RANK", "ROLE_", "TORCHELASTIC_", "WORLD_SIZE")


def run(script: str, *argv: object) -> None:
    """Run `script`, beside this file, by the main process; all processes return when it has ended.

    Exits where it fails; what was wrong it has said itself.
    """
    state = PartialState()
    if state.is_main_process:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
        # Threads that wait by spinning slow each other down twenty times where something else shares the cores.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        command = [sys.executable, str(Path(__file__).parent / script), *map(str, argv)]
        code = subprocess.run(command, env=environment).returncode
        if code != 0:
            sys.exit(code)
    state.wait_for_everyone()
