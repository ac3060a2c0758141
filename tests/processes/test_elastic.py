"""`torchrun --max_restarts`: ranks are killed at random, and the recipe continues by itself.

No command has `--resume_from_checkpoint`. The weights and the optimizer end as those of the uninterrupted run, bit for
bit.
"""

import random
import time
from pathlib import Path

import pytest
import torch

from adopt_hf.integrations.checkpoints import last_complete
from tests.examples.toy import losses, write_toy
from tests.processes.test_faults import MODES, OF_A_CHAIN, SAVE, Launch, weights_and_optimizer
from tests.support.processes import PORT

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]

DDP, SEED, RESTARTS = MODES[0], 1029, 3


def torchrun() -> tuple[object, ...]:
    rendezvous = ("--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{PORT}")
    return ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--max_restarts", RESTARTS, *rendezvous)


def kill_one(launch: Launch, rank: int, when: str, delay: float) -> str:
    """Kill a rank in training or in a save, and return what the restarted run must say."""
    assert launch.until(launch.training), launch.log()[-6000:]
    begin = launch.steps()
    steps = begin + (1 if when == "before the first checkpoint" else 1 + SAVE)
    assert launch.until(lambda: launch.steps() >= steps and (when != "in saving" or launch.unfinished() != []))
    time.sleep(delay if steps > SAVE else 0)
    killed = launch.ranks[rank]
    for path in launch.notes.glob("rank*.json"):
        path.unlink()  # so that the new processes write theirs
    killed.kill()
    complete = last_complete(launch.output)[0]
    if complete is None:
        return f"{launch.output} has no complete checkpoint (it has no checkpoint); it is now {launch.output}-start1"
    return f"going on from {complete}"


def test_a_restarted_run_continues_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_toy(tmp_path, **OF_A_CHAIN)
    # torch's default keeps the store of the processes that have ended: gloo finds their addresses there, and fails.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    with Launch(DDP, config, tmp_path / "whole", launcher=torchrun()) as launch:
        launch.finish()

    rng, output = random.Random(SEED), tmp_path / "killed"
    with Launch(DDP, config, output, launcher=torchrun()) as launch:
        said = []
        for when in ("before the first checkpoint", "in saving", "in training"):
            said.append(kill_one(launch, rng.randrange(2), when, rng.uniform(0, 0.05)))
            print(said[-1])
            gone = [rank.pid for rank in launch.ranks]
            launch.ranks.clear()
            assert launch.until(launch.training), launch.log()[-6000:]
            assert not {rank.pid for rank in launch.ranks} & set(gone)
            launch.ranks.clear()
        log = launch.finish()
    for line in said:
        assert line in log
    assert "start1" in said[0], "the first kill came after a checkpoint"
    assert "going on from" in said[-1]
    whole, killed = (weights_and_optimizer(folder, tmp_path) for folder in (tmp_path / "whole", output))
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    assert losses(output, "eval_loss") == losses(tmp_path / "whole", "eval_loss")
