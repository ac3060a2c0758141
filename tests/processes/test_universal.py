"""Another number of processes: DeepSpeed's universal checkpoints, and the error of a user who forgets to make one.

The converter is DeepSpeed's own command as our error message writes it, without --inject_missing_state.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adopt_hf.integrations.deepspeed.checkpoints import OTHER_WORLD_SIZE
from tests.processes.conftest import run, torchrun
from tests.processes.job import SAVED
from tests.processes.test_matrix import FP32_TOLERANCE, ranks, weights
from tests.support.tensors import largest_difference

pytestmark = pytest.mark.distributed

Launched = Callable[..., Path]


def train(folder: Path, processes: int, stage: int, *args: object, fails: bool = False) -> str:
    """The Trainer under ZeRO, with a config made in Python."""
    options = ("--use_cpu", "--loops", "trainer", "--zero", stage, *args)
    return torchrun(processes, "job.py", folder, *options, fails=fails)


def universal(trained: Path, folder: Path, *more: str) -> Path:
    """A copy of a job's folder whose checkpoint is a universal one."""
    shutil.copytree(trained, folder)
    checkpoint = folder / "trainer" / "run" / f"checkpoint-{SAVED}"
    tag = f"global_step{SAVED}"
    convert(checkpoint, checkpoint, tag, *more)
    return folder


def convert(source: Path, target: Path, tag: str, *more: str) -> None:
    command = re.search(r"`python (-m deepspeed\S+) ", OTHER_WORLD_SIZE)
    assert command is not None
    folders = ("--input_folder", source / tag, "--output_folder", target / f"{tag}_universal")
    run(*command[1].split(), *folders, "--num_extract_workers", 1, "--num_merge_workers", 1, *more, forked=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes(stage: int, before: int, after: int, launched: Launched, tmp_path: Path) -> None:
    single = weights(launched("cpu", processes=1), "trainer")
    if before == 2:
        trained = launched(f"zero{stage}")
    else:
        trained = tmp_path / "trained"
        train(trained, before, stage)
    converted = universal(trained, tmp_path / "universal")
    train(tmp_path / "resumed", after, stage, "--universal", "--resume", converted)
    seen = ranks(tmp_path / "resumed", "trainer")
    assert [rank["world_size"] for rank in seen] == [after] * after
    assert {(rank["started_at"], rank["optimizer"], rank["stage"]) for rank in seen} == {
        (SAVED, "adopt_hf.optimizer.ADOPTW", stage)
    }
    assert [rank["steps"] for rank in seen] == [[20.0]] * after
    assert [[group["weight_decay"] for group in rank["groups"]] for rank in seen] == [[0.1, 0.0]] * after
    assert largest_difference(weights(tmp_path / "resumed", "trainer"), single) < FP32_TOLERANCE


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_another_number_of_processes_without_conversion_says_how(
    stage: int, launched: Launched, tmp_path: Path
) -> None:
    output = train(tmp_path / "resumed", 1, stage, "--resume", launched(f"zero{stage}"), fails=True)
    assert "Automatic adjustment of ZeRO's optimizer state partitioning" in output  # DeepSpeed's own words
    assert OTHER_WORLD_SIZE in output


@pytest.mark.parametrize("stage", [2, 3])
def test_tensors_that_came_late_keep_their_step_counts(stage: int, tmp_path: Path) -> None:
    """One process trains in two halves on what two have left after the first."""
    torchrun(2, "deepspeed_job.py", tmp_path, "--half", stage, forked=True)
    convert(tmp_path / "half", tmp_path / "half", "global_step6")
    torchrun(1, "deepspeed_job.py", tmp_path, "--other_half", stage, forked=True)
    found = json.loads((tmp_path / "rank0.json").read_text())
    assert found["world_size"] == 1
    assert found["other half"]["counted"] == [2.0, 4.0, 6.0]
    assert found["other half"]["difference"] < FP32_TOLERANCE


@pytest.mark.parametrize("stage", [2, 3])
def test_the_state_of_adam_is_refused(stage: int, launched: Launched, tmp_path: Path) -> None:
    trained = launched(f"zero{stage}", "--optim", "adamw_torch", "--loops", "trainer")
    converted = universal(trained, tmp_path / "universal", "--inject_missing_state")  # which with ADOPT is there
    output = train(tmp_path / "resumed", 2, stage, "--universal", "--resume", converted, fails=True)
    assert "this is the state of Adam or one of its kind" in output


@pytest.mark.parametrize("stage", [2, 3])
def test_and_that_of_adopt_by_adam(stage: int, launched: Launched, tmp_path: Path) -> None:
    converted = universal(launched(f"zero{stage}"), tmp_path / "universal")
    options = ("--optim", "adamw_torch", "--universal", "--resume", converted)
    output = train(tmp_path / "resumed", 2, stage, *options, fails=True)
    assert "the state in the checkpoint is that of ADOPT, and the optimizer is AdamW" in output
