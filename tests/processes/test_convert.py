"""A run of AdamW goes on with ADOPT, and back, in each sharded layout, as in one process.

The checkpoints are those of the Trainer on two processes: FSDP2 whole and sharded (DCP), ZeRO 2 and 3 made universal.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adopt_hf.commands.convert.conversion import convert
from tests.processes.conftest import launch, torchrun
from tests.processes.job import SAVED
from tests.processes.test_matrix import FP32_TOLERANCE, ranks, weights
from tests.processes.test_universal import universal
from tests.support.tensors import largest_difference

pytestmark = pytest.mark.distributed

Launched = Callable[..., Path]
ADAMW = ("--optim", "adamw_torch", "--loops", "trainer")
CONFIGS = {"fsdp2": None, "fsdp2_sharded": None, "zero2": 2, "zero3": 3}


def checkpoint_of(folder: Path) -> Path:
    return folder / "trainer" / "run" / f"checkpoint-{SAVED}"


def goes_on(source: Path, folder: Path, optim: str, stage: int | None, config: str, processes: int = 2) -> Path:
    """Resume from the checkpoint in `source`; return the folder with what was seen."""
    options = ("--use_cpu", "--loops", "trainer", "--optim", optim, "--resume", source)
    if stage is None:
        launch(config, "job.py", folder, *options, processes=processes)
    else:
        torchrun(processes, "job.py", folder, *options, "--zero", stage, "--universal")
    return folder


def assert_same_moments(ours: Path, theirs: Path) -> None:
    """Compare the moments of two universal checkpoints, to rounding."""
    files = sorted(path.relative_to(theirs) for path in theirs.rglob("exp_avg*.pt"))
    assert len(files) == 2 * len(list(theirs.rglob("fp32.pt"))) > 0
    for file in files:
        torch.testing.assert_close(torch.load(ours / file), torch.load(theirs / file), rtol=4e-7, atol=1e-38)


@pytest.fixture(scope="module")
def single(launched: Launched, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after one process has trained half of the steps with AdamW and the others with ADOPT."""
    folder = tmp_path_factory.mktemp("single")
    convert(checkpoint_of(launched("cpu", *ADAMW, processes=1)), "adopt", checkpoint_of(folder / "half"))
    return weights(goes_on(folder / "half", folder / "whole", "adopt", None, "cpu", processes=1), "trainer")


@pytest.mark.parametrize("config", CONFIGS)
def test_a_sharded_run_goes_on(
    config: str, launched: Launched, single: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """ADOPT ends where one process does, and the state that has been converted back where AdamW alone does.

    The tolerance grows with what AdamW itself makes of another order of summation: it divides gradients that are 0 but
    for rounding (the bias of the keys) by their own size, down to eps = 1e-8.
    """
    stage, trained = CONFIGS[config], launched(config, *ADAMW)
    source = trained if stage is None else universal(trained, tmp_path / "universal", "--inject_missing_state")
    convert(checkpoint_of(source), "adopt", checkpoint_of(tmp_path / "adopt"))
    seen = goes_on(tmp_path / "adopt", tmp_path / "went on", "adopt", stage, config)
    for rank in ranks(seen, "trainer"):
        assert (rank["world_size"], rank["started_at"], rank["steps"]) == (2, SAVED, [20.0])
        assert rank["optimizer"] == "adopt_hf.optimizer.ADOPTW"
        assert [group["weight_decay"] for group in rank["groups"]] == [0.1, 0.0]
        assert {tuple(group["betas"]) for group in rank["groups"]} == {(0.9, 0.9999)}
        assert {group["beta2_warmup"] for group in rank["groups"]} == {1.0}
    alone = weights(launched("cpu", *ADAMW, processes=1), "trainer")
    drift = largest_difference(weights(trained, "trainer"), alone)
    tolerance = FP32_TOLERANCE + 4 * drift
    assert drift < 1e-4
    assert largest_difference(weights(seen, "trainer"), single) < tolerance
    assert largest_difference(alone, single) > 20 * tolerance
    convert(checkpoint_of(tmp_path / "adopt"), "adamw", checkpoint_of(tmp_path / "back"))
    if stage == 3:
        # DeepSpeed gives every group of AdamW the numbers of the first, and counts the steps of all groups together.
        assert_same_moments(checkpoint_of(tmp_path / "back"), checkpoint_of(source))
        return
    seen = goes_on(tmp_path / "back", tmp_path / "again", "adamw_torch", stage, config)
    assert {rank["optimizer"] for rank in ranks(seen, "trainer")} == {"torch.optim.adamw.AdamW"}
    assert largest_difference(weights(seen, "trainer"), weights(trained, "trainer")) < tolerance
