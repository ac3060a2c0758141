"""What ADOPT adds to the traffic of a run, counted on two and on four processes, and ranks that have other options.

torch's profiler counts all collectives of gloo: those of DDP's reducer, FSDP, DeepSpeed and ADOPT. The same steps with
AdamW are the reference.
"""

import json
from collections import Counter
from typing import Any

import pytest

from adopt_hf.traffic import added
from experiments.launches.memory_model import Model
from tests.processes.conftest import torchrun

pytestmark = pytest.mark.distributed

MODES = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")
TENSORS = len(list(Model().parameters()))


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp(f"peers{request.param}")
    torchrun(request.param, "peers_job.py", folder, forked=True)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(request.param)]


def test_other_options_are_refused_on_all_ranks_but_the_first(ranks: list[dict[str, Any]]) -> None:
    errors = [rank["refused"] for rank in ranks]
    assert sorted(map(bool, errors)) == [False] + [True] * (len(ranks) - 1)
    first = errors.index("")
    for rank, error in enumerate(errors):
        if rank != first:
            assert error.startswith(f"rank {rank} (on ")
            assert f"has lr={0.1 * (1 + rank)!r} in param group 0, and rank {first} (on " in error
            assert f"has lr={0.1 * (1 + first)!r}, but they train one model" in error


@pytest.mark.parametrize("mode", MODES)
def test_what_a_step_adds_to_adamw(mode: str, ranks: list[dict[str, Any]]) -> None:
    """Under ZeRO one all-reduce for the arrivals. Elsewhere nothing. The first step agrees on first gradients, too."""
    for rank in ranks:
        adamw, adopt = (
            [Counter((name, tuple(shape)) for name, shape in step) for step in rank["traffic"][mode][optimizer]]
            for optimizer in ("adamw", "adopt")
        )
        assert sum(map(len, adamw)) > 0, "nothing was counted"
        all_reduces, size = added(TENSORS, mode)  # of bytes
        wanted = Counter([("gloo:all_reduce", (size, 1))] * all_reduces)
        for before, now in zip(adamw[1:], adopt[1:], strict=True):
            assert now - before == wanted
            assert not before - now
        once = adopt[0] - adamw[0] - wanted
        assert sum(once.values()) == (0 if mode in ("ddp", "zero0") else 2), "one for each param group"
        assert sum(shape[0] for _, shape in once) == (0 if mode in ("ddp", "zero0") else TENSORS)
