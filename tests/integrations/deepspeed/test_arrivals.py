"""Process groups for tensors on the CPU, in one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from adopt_hf.integrations.deepspeed.arrivals import host_group


@pytest.fixture
def initialised(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_group_of_gloo_is_used_as_it_is(initialised: None) -> None:
    assert host_group(dist.group.WORLD) is dist.group.WORLD


def test_another_gets_a_group_of_gloo_once_until_torch_distributed_begins_again(
    initialised: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
    first = host_group(dist.group.WORLD)
    assert first is not dist.group.WORLD
    assert dist.get_backend(first) == "gloo"
    assert host_group(dist.group.WORLD) is first
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store2", rank=0, world_size=1)
    second = host_group(dist.group.WORLD)
    assert second is not first
    assert dist.get_process_group_ranks(second) == [0]
