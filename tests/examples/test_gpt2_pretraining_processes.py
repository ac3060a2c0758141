"""examples/gpt2_pretraining as its users start it: fresh processes, a kill, torchrun, accelerate launch, sharding.

Every test on several processes asserts how many trained together: a launcher that starts two runs of one process
would pass everything else.
"""

import functools
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adopt_hf.integrations.checkpoints import MARK
from tests.examples.test_gpt2_pretraining import EXAMPLE, SCRIPTS
from tests.examples.toy import history, losses, write_toy
from tests.support import processes
from tests.support.forks import OF_RECIPE
from tests.support.processes import ABORTED, CONFIGS, ROOT, Finished, accelerate, environment

OPTIMIZER = {"train.py": "optimizer.pt", "train_accelerate.py": "optimizer.bin"}
TORCHRUN, DDP = processes.torchrun(2), accelerate("ddp")
# It helps the recipe where CPUs need that. As users do not start it, it runs in forks.
RECIPE = ROOT / "tests" / "processes" / "recipe.py"
DONE = "model and curves (loss.png) in"


# With what was reused, and where a run goes on.
MORE = {"log_level": "info", "logging_steps": 1, "sample_tokens": 4}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_toy(tmp_path, **MORE)


def run(config: Path, script: str, *argv: object, launcher: tuple[object, ...] = ()) -> Finished:
    modules = OF_RECIPE if RECIPE in launcher else ()
    done = processes.run(*launcher, EXAMPLE / script, config, *argv, env=home(config), modules=modules)
    if ABORTED in done.stderr and DONE in done.stdout:  # what the run has left is looked at
        done.returncode = 0
    return done


def home(config: Path) -> dict[str, str]:
    return {"HF_HOME": str(config.parent / "hf")}


@pytest.mark.slow
def test_an_error_is_exit_code_2(config: Path) -> None:
    result = run(config, "train.py", "--max_stepz", "3")
    assert result.returncode == 2
    assert not result.stdout
    error = result.stderr.strip().splitlines()[-1]
    assert error == "train.py: error: unknown argument --max_stepz; did you mean max_steps or save_steps or eval_steps?"


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(script: str, config: Path) -> None:
    """40 steps at once, against 40 steps killed after the save at 20 and started again."""
    whole, killed = config.parent / "whole", config.parent / "killed"
    assert run(config, script, "--output_dir", whole, "--use_cpu").returncode == 0

    command = [sys.executable, str(EXAMPLE / script), str(config), "--output_dir", str(killed), "--use_cpu"]
    silent = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment(home(config)), **silent)
    deadline = time.monotonic() + 400
    while not (killed / "checkpoint-20" / MARK).exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "checkpoint-40" / MARK).exists(), "killed too late to mean anything"

    refused = run(config, script, "--output_dir", killed, "--use_cpu")
    assert refused.returncode == 2
    assert "holds another run" in refused.stderr
    resumed = run(config, script, "--output_dir", killed, "--use_cpu", "--resume_from_checkpoint", "last")
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from" in resumed.stderr
    assert "checkpoint-20" in resumed.stderr
    assert resumed.stderr.count("reused") == 3
    assert "tokenised," not in resumed.stderr

    one, other = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    name = OPTIMIZER[script]
    a, b = (torch.load(folder / "checkpoint-40" / name, weights_only=True) for folder in (whole, killed))
    assert a["param_groups"] == b["param_groups"]
    assert "clip_exp" in a["param_groups"][0]
    assert all(torch.equal(a["state"][i][key], b["state"][i][key]) for i in a["state"] for key in a["state"][i])
    assert losses(whole, "loss") == losses(killed, "loss")
    assert losses(whole, "eval_loss") == losses(killed, "eval_loss")


OF_ONE_OR_TWO = ("--use_cpu", "--dropout", 0, "--max_steps", 20, "--save_steps", 10)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """`alone(script)`: a config, and the output folder of one process's run of it."""

    @functools.cache
    def once(script: str) -> tuple[Path, Path]:
        config = write_toy(tmp_path_factory.mktemp("alone"), **MORE)
        output = config.parent / "single"
        assert run(config, script, "--output_dir", output, *OF_ONE_OR_TWO).returncode == 0
        return config, output

    return once


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, DDP], ids=["torchrun", "accelerate"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_two_processes_are_one_run(
    script: str, launcher: tuple[object, ...], alone: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Two processes with half the accumulation see the same sequences a step and make the same curve, then resume."""
    (config, single), double = alone(script), tmp_path / "double"
    both = ("--output_dir", double, *OF_ONE_OR_TWO, "--gradient_accumulation_steps", 1)
    result = run(config, script, *both, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"8 sequences a step in 2 process\(es\)", result.stderr), "not one run of two processes"
    assert result.stdout.count("sample after 20 steps") == 1
    assert result.stderr.count("tokenised,") == 0, "the cache of the single run serves both"
    assert losses(double, "loss") == pytest.approx(losses(single, "loss"), rel=1e-3)
    assert losses(double, "eval_loss") == pytest.approx(losses(single, "eval_loss"), rel=1e-3)
    states = "rng_state_*.pth" if script == "train.py" else "random_states_*.pkl"
    assert len(list((double / "checkpoint-10").glob(states))) == 2

    curve, weights = losses(double, "loss"), load_file(double / "model.safetensors")
    (double / "checkpoint-20" / "trainer_state.json").unlink()
    again = run(config, script, *both, "--resume_from_checkpoint", "last", launcher=launcher)
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr
    assert "checkpoint-10" in again.stderr
    resumed = load_file(double / "model.safetensors")
    assert losses(double, "loss") == curve
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


# The modes that differ in how weights are gathered, saved and clipped, with the distributed type to find. Some are also
# killed and resumed, in tests/processes/test_faults.py.
SHARDED = {
    "fsdp2": "FSDP",
    "zero0": "DEEPSPEED",
    "zero2": "DEEPSPEED",
    "zero3": "DEEPSPEED",
}
STEPS, SAVED = 14, 8
# An epoch is 12 steps, the last of them of one micro-batch instead of two. Clipping at 0.3, unlike the 1.0 that
# DeepSpeed is given by default, happens in every step.
OF_TWO = ("--use_cpu", "--dropout", 0, "--max_steps", STEPS, "--save_steps", SAVED, "--max_grad_norm", 0.3)
OF_TWO += ("--per_device_train_batch_size", 16)


@pytest.fixture(scope="module")
def unsharded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """`unsharded(script)`: a config, and the output folder of a run of it under DDP."""
    config = write_toy(tmp_path_factory.mktemp("unsharded"), **MORE)

    @functools.cache
    def once(script: str) -> tuple[Path, Path]:
        output = config.parent / script
        result = run(config, script, "--output_dir", output, *OF_TWO, launcher=DDP)
        assert result.returncode == 0, result.stderr
        return config, output

    return once


@pytest.mark.distributed
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("mode", SHARDED)
def test_sharded_is_unsharded(
    mode: str, script: str, unsharded: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """The same curve, a whole model at the end with a sample of it, and an exact resume."""
    pytest.importorskip("deepspeed")
    config, whole = unsharded(script)
    launcher, output = (*accelerate(mode), RECIPE, tmp_path), tmp_path / "output"
    result = run(config, script, "--output_dir", output, *OF_TWO, launcher=launcher)
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert (seen["world_size"], seen["distributed_type"]) == (2, SHARDED[mode])
        assert seen["optimizer"] == "adopt_hf.optimizer.ADOPTW"
    assert "64 sequences a step in 2 process(es)" in result.stderr
    assert history(output)[-1]["epoch"] > 1
    assert min(losses(whole, "grad_norm")) > 0.3
    for key in ("loss", "eval_loss", "learning_rate", "grad_norm"):
        if (mode, key) != ("zero0", "grad_norm"):  # DeepSpeed does not tell
            assert losses(output, key) == pytest.approx(losses(whole, key), rel=1e-4), key
    assert result.stdout.count(f"sample after {STEPS} steps") == 1
    assert (output / "loss.png").stat().st_size > 10_000
    weights, reference = load_file(output / "model.safetensors"), load_file(whole / "model.safetensors")
    assert weights.keys() == reference.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], reference[name], rtol=0, atol=1e-5)

    (output / f"checkpoint-{STEPS}" / "complete.json").unlink()
    again = run(config, script, "--output_dir", output, *OF_TWO, "--resume_from_checkpoint", "last", launcher=launcher)
    assert again.returncode == 0, again.stderr
    assert f"going on from {output / f'checkpoint-{SAVED}'}" in again.stderr
    resumed = load_file(output / "model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


@pytest.mark.distributed
def test_a_launcher_that_contradicts_the_recipe_is_refused(config: Path) -> None:
    pytest.importorskip("deepspeed")
    launcher = (*accelerate("zero2"), "--gradient_accumulation_steps", 3)
    output = config.parent / "out"
    result = run(config, "train_accelerate.py", "--use_cpu", "--output_dir", output, launcher=launcher)
    assert result.returncode != 0
    assert "gradient_accumulation_steps is 2, but the launcher's DeepSpeed config has" in result.stderr
    assert not output.exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs it is FSDP")
def test_fsdp_that_would_be_ddp_is_refused(config: Path) -> None:
    result = run(config, "train.py", "--use_cpu", "--output_dir", config.parent / "out", launcher=accelerate("fsdp2"))
    assert result.returncode != 0
    assert "FSDP was asked for, but Accelerate turns it off on CPUs" in result.stderr


@pytest.mark.slow
def test_two_processes_prepare_the_data_once(config: Path) -> None:
    result = run(config, "train.py", "--use_cpu", "--output_dir", config.parent / "out", launcher=TORCHRUN)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("tokenising") >= 2  # the progress bars of the two splits
    assert len(list((config.parent / "cache").glob("*.uint16"))) == 2
    assert not list((config.parent / "cache").glob("*.unfinished"))


@pytest.mark.slow
def test_the_cpu_launcher_config(config: Path) -> None:
    launcher = ("-m", "accelerate.commands.launch", "--config_file", CONFIGS / "cpu.yaml")
    output = config.parent / "out"
    result = run(config, "train_accelerate.py", "--max_steps", 2, "--output_dir", output, launcher=launcher)
    assert result.returncode == 0, result.stderr
    assert "in 1 process(es)" in result.stderr
    assert (output / "loss.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs the launch is right without --use_cpu")
def test_processes_that_would_train_alone_are_refused(config: Path) -> None:
    """torchrun on CPU without --use_cpu: accelerate finds no GPU and gives every process a world of its own."""
    output = config.parent / "out"
    result = run(config, "train.py", "--output_dir", output, launcher=TORCHRUN)
    assert result.returncode != 0
    assert "2 processes were launched, but each would train alone; on CPUs pass --use_cpu" in result.stderr
    assert not output.exists()
