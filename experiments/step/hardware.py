"""The machine and the versions that numbers belong to."""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from experiments.harness.fresh import ROOT
from experiments.step.peers import versions


def environment(device: str) -> dict[str, Any]:
    """What the JSON says of this machine; within `searching`, which finds the peers' versions."""
    gpu = torch.cuda.get_device_properties(0) if device == "cuda" else None
    return {
        "hardware": gpu.name if gpu else cpu_model(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "gpu_memory_gib": round(gpu.total_memory / 2**30) if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"adopt_hf": _version("adopt_hf"), "torch": str(torch.__version__), **versions()},
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # of others, before the start
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def slug(hardware: str) -> str:
    """`hardware` for a file name."""
    return re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout, with "+" if it has changes; None where there is no git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return described.stdout.strip() or None
