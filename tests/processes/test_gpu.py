"""FSDP1, which does not work on CPUs: two GPUs train as one."""

import pytest
import torch

from tests.processes.conftest import launch
from tests.processes.test_matrix import FP32_TOLERANCE, ranks, weights
from tests.support.tensors import largest_difference

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="FSDP1 needs two GPUs, on CPUs it fails with AdamW too"),
]


@pytest.mark.parametrize("loop", ["trainer", "accelerate"])
def test_fsdp1(loop: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    single, whole, resumed = (tmp_path_factory.mktemp(name) for name in ("single", "whole", "resumed"))
    launch("ddp", "job.py", single, "--loops", loop, processes=1, gpus=True)
    launch("fsdp1", "job.py", whole, "--loops", loop, gpus=True)
    launch("fsdp1", "job.py", resumed, "--loops", loop, "--resume", whole, gpus=True)
    for rank in ranks(whole, loop):
        assert (rank["world_size"], rank["distributed_type"], rank["fsdp_version"]) == (2, "FSDP", 1)
        assert rank["optimizer"] == "adopt_hf.optimizer.ADOPTW"
    # The GPUs multiply in another order than one of them alone; TF32 is off.
    assert largest_difference(weights(whole, loop), weights(single, loop)) < 10 * FP32_TOLERANCE
    a, b = weights(whole, loop), weights(resumed, loop)
    assert all(torch.equal(a[name], b[name]) for name in a)
