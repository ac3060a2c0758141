"""`python -m experiments <experiment>` in a process of its own, offline and on one thread."""

import os
from pathlib import Path

import pytest

from tests.support.processes import Finished, run

ROOT = Path(__file__).parents[2]


def shared_home(factory: pytest.TempPathFactory) -> Path:
    """A home for the commands that read the standard library's source: it is cut into tokens once for all of them."""
    base = factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "home"
    home.mkdir(exist_ok=True)
    return home


def call(experiment: str, *argv: object, home: Path) -> Finished:
    """Run it with `home` for caches. Its output and its exit code are in the result."""
    caches = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache")}
    return run("-m", "experiments", experiment, *argv, env=caches, cwd=home)
