"""For every test: nothing here depends on how fast the machine is."""

import os

from hypothesis import HealthCheck, settings

# Threads that wait by spinning slow each other down twenty times where something else shares the cores. Before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

# Before triton: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile(
    "repo", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repo")
