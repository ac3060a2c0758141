"""ZeRO 3 with the optimizer state on disk: one process's weights, an exact resume, and files that were really swapped.

DeepSpeed swaps tensors of 1 MiB and more; a smaller model would pass and swap nothing.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from tests.distributed.conftest import CONFIGS, run
from tests.distributed.job import STEPS
from tests.distributed.test_matrix import FP32_TOLERANCE, largest_difference, ranks, weights

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
    resumed = launched("zero3_nvme", *WIDE, "--resume", whole)
    assert largest_difference(weights(whole, loop), weights(single, loop)) < FP32_TOLERANCE
    a, b = weights(whole, loop), weights(resumed, loop)
    assert all(torch.equal(a[name], b[name]) for name in a)
    for rank in ranks(whole, loop):
        assert (rank["world_size"], rank["distributed_type"], rank["stage"]) == (2, "DEEPSPEED", 3)
        assert (rank["optimizer"], rank["steps"]) == ("adopt_hf.optimizer.ADOPT", [STEPS])
    swapped = [path for path in nvme.rglob("*.swp") if path.stat().st_size >= 2**20]
    assert {"exp_avg", "exp_avg_sq"} <= {
        name for path in swapped for name in ("exp_avg", "exp_avg_sq") if name in path.name
    }


@pytest.fixture(scope="module")
def nvme() -> Path:
    """The folder that the config names, and before that DeepSpeed's aio extension: it takes minutes to build, once."""
    run("-c", "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()", timeout=1000)
    line = next(text for text in (CONFIGS / "zero3_nvme.yaml").read_text().splitlines() if "nvme_path" in text)
    return Path(line.split(":")[1].strip())
