"""`python -m experiments <experiment>` in a process of its own, offline and on one thread."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shared_home(factory: pytest.TempPathFactory) -> Path:
    """A home for the commands that read the standard library's source: it is cut into tokens once for all of them."""
    base = factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "home"
    home.mkdir(exist_ok=True)
    return home


def call(experiment: str, *argv: object, home: Path) -> subprocess.CompletedProcess[str]:
    """Run it with `home` for caches. Its output and its exit code are in the result."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"),
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments", experiment, *map(str, argv)]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=500)
