"""optim="adopt_8bit" in every kind of sharding: really 8 bits, near the run of one process, and an exact resume."""

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.launches.matrix import MODES, Mode
from tests.processes.test_matrix import distance, ranks, start, weights

pytestmark = pytest.mark.distributed

Launched = Callable[..., Path]
CONFIGS = ("ddp", "fsdp2", "zero1", "zero2", "zero3", "zero2_offload")
CELLS = [mode for mode in MODES if mode.config in CONFIGS and not mode.bf16]
ARGUMENTS = ("--optim", "adopt_8bit", "--width", "64", "--optim_args", "block_size=64", "--loops", "trainer")
LOOP = "trainer"


@pytest.mark.parametrize("mode", CELLS, ids=str)
def test_8_bits(mode: Mode, launched: Launched) -> None:
    whole = launched(mode.config, *ARGUMENTS)
    for rank in ranks(whole, LOOP):
        assert rank["world_size"] == 2
        assert (rank["distributed_type"], rank["stage"]) == (mode.distributed_type, mode.stage)
        assert rank["optimizer"] == "adopt_hf.optimizer.ADOPTW"
        assert {"exp_avg_codes", "exp_avg_sq_codes", "scales", "step"} <= set(rank["state_keys"])
        assert {"torch.uint8", "torch.float32"} == set(rank["moments_dtype"])
        assert "exp_avg" in rank["state_keys"]  # of embeddings and small tensors
        assert rank["moments_bytes"] < 0.5 * 4 * rank["moments"]
        for group in rank["groups"]:
            assert (group["block_size"], group["seed"]) == (64, 0)
        forms = {group["state_bits"] for group in rank["groups"]}
        assert forms == ({8, 32} if mode.config.startswith("zero") else {8})  # there a group is one flat tensor
    single = weights(launched("cpu", *ARGUMENTS, processes=1), LOOP)
    float32 = weights(launched("cpu", "--width", "64", "--loops", "trainer", processes=1), LOOP)
    got = weights(whole, LOOP)
    way = distance(start(64), float32)
    assert 0 < distance(got, single) < 0.2 * way
    assert 0 < distance(got, float32) < 0.2 * way

    resumed = launched(mode.config, *ARGUMENTS, "--resume", whole)
    again = weights(resumed, LOOP)
    assert distance(got, again) == 0
    for before, after in zip(ranks(whole, LOOP), ranks(resumed, LOOP), strict=True):
        for same in ("digest", "steps", "moments", "groups"):
            assert before[same] == after[same], same
