"""ZeRO 3 with the optimizer state on disk: one process's weights, files that were really swapped, no silent resume.

DeepSpeed swaps tensors of 1 MiB and more; a smaller model would pass and swap nothing.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import AsyncIOBuilder

from adopt_hf.integrations.deepspeed.checkpoints import NO_NVME_RESUME
from tests.processes.conftest import launch, run, torchrun
from tests.processes.job import STEPS
from tests.processes.test_matrix import FP32_TOLERANCE, ranks, weights
from tests.support.processes import CONFIGS
from tests.support.tensors import largest_difference

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(
        not AsyncIOBuilder().is_compatible(verbose=False),
        reason="libaio is not installed: no NVMe offload in DeepSpeed",
    ),
    pytest.mark.timeout(2400),  # DeepSpeed builds its aio extension at the first use
]
WIDE = ("--width", 256)


@pytest.mark.parametrize("loop", ["trainer", "accelerate"])
def test_nvme(loop: str, nvme: Path, launched: Callable[..., Path]) -> None:
    single = launched("cpu", *WIDE, processes=1)
    whole = launched("zero3_nvme", *WIDE)
    assert largest_difference(weights(whole, loop), weights(single, loop)) < FP32_TOLERANCE
    for rank in ranks(whole, loop):
        assert (rank["world_size"], rank["distributed_type"], rank["stage"]) == (2, "DEEPSPEED", 3)
        assert (rank["optimizer"], rank["steps"]) == ("adopt_hf.optimizer.ADOPTW", [STEPS])
        assert rank["offload"] == ["nvme", "none"]
    swapped = [path for path in nvme.rglob("*.swp") if path.stat().st_size >= 2**20]
    assert all(any(name in path.name for path in swapped) for name in ("exp_avg-", "exp_avg_sq-"))


@pytest.mark.parametrize("loop", ["trainer", "accelerate"])
def test_resuming_is_refused(loop: str, nvme: Path, launched: Callable[..., Path], tmp_path: Path) -> None:
    """DeepSpeed would bring back the swapped tensors alone, and say nothing."""
    whole = launched("zero3_nvme", *WIDE)
    options = ("--use_cpu", "--loops", loop, *WIDE, "--resume", whole)
    assert NO_NVME_RESUME in launch("zero3_nvme", "job.py", tmp_path, *options, fails=True)


@pytest.mark.usefixtures("nvme")  # which builds the extension
def test_the_best_model_is_loaded_at_the_end(tmp_path: Path) -> None:
    torchrun(2, "zero_job.py", tmp_path, "--nvme", forked=True)
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())["best, really on NVMe"]
        assert found["swapped"] > 0
        assert not found["best"].endswith("checkpoint-4")  # the last, whose weights are there already
        assert found["from the best"] == 0
        assert found["from the last"] > 1e-4


@pytest.fixture(scope="module")
def nvme() -> Path:
    """The folder that the config names, emptied; and before that DeepSpeed's aio extension, minutes to build, once."""
    run("-c", "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()", timeout=1000)
    config = json.loads((CONFIGS / "zero3_nvme.json").read_text())
    folder = Path(config["zero_optimization"]["offload_optimizer"]["nvme_path"])
    shutil.rmtree(folder, ignore_errors=True)  # what is in it afterwards is of these runs
    return folder
