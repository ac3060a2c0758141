"""The machine and the versions that numbers belong to."""

import os
import platform
import re
from typing import Any

import torch

from experiments.harness import machine
from experiments.step.peers import PEERS


def environment(device: str) -> dict[str, Any]:
    """Describe this machine for the JSON. Call it within `searching`, which finds the peers' versions."""
    gpu = torch.cuda.get_device_properties(0) if device == "cuda" else None
    peers = sorted({peer.distribution for peer in PEERS.values() if peer.distribution})
    now = machine.now("adopt_hf", "torch", *peers)
    return {
        "hardware": gpu.name if gpu else now["processor"],
        "cpu": now["processor"],
        "cores": now["cores"],
        "gpu_memory_gib": round(gpu.total_memory / 2**30) if gpu else None,
        "cuda": torch.version.cuda if gpu else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": now["python"],
        "versions": now["versions"] | {"torch": str(torch.__version__)},
        "commit": now["commit"],
        "load": now["load"],
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def slug(hardware: str) -> str:
    """Return `hardware` in the form of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
