"""LoRA+ by `optim_args` under ZeRO, with an ADOPT block in the DeepSpeed config and without: as in one process."""

import json
from pathlib import Path

import pytest
import torch

from tests.processes.conftest import torchrun
from tests.support.tensors import largest_difference

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

ZERO = {"stage 2": 2, "stage 3": 3, "block, stage 2": 2, "block, stage 3": 3}
ONE_RATE = "one process, one rate"
TOLERANCE = 1e-6
RATES = {1e-3, 5e-3, 1e-2}  # of A, embeddings, B


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one process, and then two, have written."""
    folder = tmp_path_factory.mktemp("peft")
    torchrun(1, "peft_job.py", folder, "one process", ONE_RATE)
    alone = json.loads((folder / "rank0.json").read_text())["one process"]
    assert (alone["world_size"], alone["stage"], set(alone["rates"])) == (1, None, RATES)
    torchrun(2, "peft_job.py", folder, *ZERO)
    return folder


@pytest.mark.parametrize("scenario", ZERO)
def test_the_adapters_are_those_of_one_process(scenario: str, folder: Path) -> None:
    for rank in range(2):
        seen = json.loads((folder / f"rank{rank}.json").read_text())[scenario]
        assert (seen["world_size"], seen["stage"], seen["optimizer"]) == (2, ZERO[scenario], "ADOPTW")
        assert set(seen["rates"]) == RATES
    got, wanted, one_rate = (torch.load(folder / f"{name}.pt") for name in (scenario, "one process", ONE_RATE))
    assert len(wanted) == 6
    assert largest_difference(got, wanted) < TOLERANCE
    assert largest_difference(one_rate, wanted) > 1000 * TOLERANCE
