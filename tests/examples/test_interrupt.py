"""Ctrl-C in a recipe: one line with the command that goes on, exit code 130, and that command does go on."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from adopt_hf.integrations.checkpoints import MARK, mark
from examples.shared import cli
from tests.examples.test_gpt2_pretraining import EXAMPLE, SCRIPTS
from tests.examples.test_gpt2_pretraining_processes import home
from tests.examples.toy import write_toy
from tests.support import processes
from tests.support.processes import environment


@pytest.fixture(autouse=True)
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cli, "output_dir", None)


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("rank", "said"), [(None, True), ("0", True), ("1", False)])
def test_one_line_and_130(
    rank: str | None,
    said: bool,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-20"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    Accelerator(cpu=True)
    mark(checkpoint, 20)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(sys, "argv", ["train.py", "--output_dir", str(tmp_path / "out")])
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    cli.output_dir = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_:
        cli.run(interrupted)
    assert exit_.value.code == 130
    command = f"python train.py --output_dir {tmp_path / 'out'} --resume_from_checkpoint last"
    line = f"train.py: stopped; go on from checkpoint-20 with: {command}"
    assert capfd.readouterr().err.strip() == (line if said else "")


def test_a_helper_of_a_run_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.run(interrupted)
    assert exit_.value.code == 130
    assert not capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_real_one(script: str, tmp_path: Path) -> None:
    """The command of the line ends where the uninterrupted run ends."""
    config = write_toy(tmp_path, use_cpu=True)
    command = [str(EXAMPLE / script), str(config), "--disable_tqdm", "true"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    processes.run(*command, "--output_dir", whole, env=home(config)).check_returncode()
    process = subprocess.Popen(
        [sys.executable, *command, "--output_dir", str(stopped)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home(config)),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by what a shell starts with "&"
    )
    deadline = time.monotonic() + 400
    while not (stopped / "checkpoint-20" / MARK).exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said
    line = said.strip().splitlines()[-1]
    assert line.startswith(f"{script}: stopped; go on from checkpoint-20 with: python ")
    _, *argv = shlex.split(line.split(" with: ")[1])
    processes.run(*argv, env=home(config)).check_returncode()
    a, b = load_file(whole / "model.safetensors"), load_file(stopped / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
