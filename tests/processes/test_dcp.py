"""torch's distributed checkpoints: saved by two processes and loaded by one, and the other way round.

Asking for the optimizer's state dict before training changes nothing, though torch calls `step()` on zero gradients.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.processes.conftest import torchrun
from tests.support.tensors import largest_difference

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-6


def train(processes: int, folder: Path, first: int, last: int, *args: object) -> dict[str, Tensor]:
    torchrun(processes, "dcp_job.py", folder, first, last, *args)
    seen = json.loads((folder / "seen.json").read_text())
    assert (seen["world_size"], seen["optimizer"], seen["steps"]) == (processes, "ADOPT", [float(last)])
    assert set(seen["sharded"]) == {"DTensor" if processes > 1 else "Parameter"}
    weights: dict[str, Tensor] = torch.load(folder / "weights.pt")
    return weights


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return train(1, tmp_path_factory.mktemp("single"), 0, 20)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_saved_by_some_and_loaded_by_others(before: int, after: int, single: dict[str, Tensor], tmp_path: Path) -> None:
    half = train(before, tmp_path / "half", 0, 10, "--save", tmp_path / "checkpoint")
    whole = train(after, tmp_path / "whole", 10, 20, "--load", tmp_path / "checkpoint")
    assert largest_difference(whole, single) < TOLERANCE
    assert largest_difference(half, single) > 100 * TOLERANCE


@pytest.mark.parametrize("processes", [1, 2])
def test_asking_for_the_state_before_training_changes_nothing(processes: int, tmp_path: Path) -> None:
    plain, asked = (
        train(processes, tmp_path / name, 0, 12, *args) for name, args in (("a", ()), ("b", ("--ask_first",)))
    )
    assert all(torch.equal(plain[name], asked[name]) for name in plain)
