"""`python -m adopt_hf env`: what is there, what runs where, and why something cannot."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from adopt_hf import backends


def env(**environment: str) -> str:
    command = [sys.executable, "-m", "adopt_hf", "env"]
    # Under TRITON_INTERPRET, which the tests set, the Triton kernel takes CPU tensors.
    return subprocess.check_output(command, text=True, env=os.environ | {"TRITON_INTERPRET": "0"} | environment)


def test_it_names_versions_and_backends(tmp_path: Path) -> None:
    report = env(ADOPT_HF_CACHE=str(tmp_path))
    assert f"torch {version('torch')}" in report
    assert str(tmp_path) in report
    on_cpu = report.split("\ncpu: ")[1]
    assert all(f"backend={name!r}: " in on_cpu for name in backends.NAMES)
    if backends.CPU.why_not(torch.device("cpu"), torch.float32) is None:
        assert on_cpu.count(": the compiled CPU kernel\n") == 2  # auto and fused


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="hides the compiler by PATH")
def test_without_a_compiler_it_says_why(tmp_path: Path) -> None:
    report = env(ADOPT_HF_CACHE=str(tmp_path), PATH=str(tmp_path), CC="")
    assert "backend='auto': foreach operations of torch\n" in report
    assert "backend='fused': cannot run: no C compiler is there (looked for cc, gcc, clang" in report
