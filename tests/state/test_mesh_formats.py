"""Moments in 8 bits on device meshes of several dimensions: which shards can have them, and what is said of the others.

One process is a mesh of every shape. The job of `tests/processes/test_meshes.py` has several.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard

from adopt_hf import ADOPT
from adopt_hf.state import formats
from adopt_hf.state.conversion import CODES, bits_of

Placements = tuple[Placement, ...]
STRIDED = _StridedShard(0, split_factor=2)  # what FSDP2 makes of a tensor that is already cut in dimension 0
WHOLE_ROWS: list[Placements] = [(STRIDED, Shard(0)), (Replicate(), Shard(0)), (Replicate(), Replicate())]
OTHERS: list[Placements] = [(Shard(0), Shard(1)), (Replicate(), Shard(2)), (_StridedShard(1, split_factor=2), Shard(0))]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("fsdp", "tp"))
    dist.destroy_process_group()


def trained(whole: Tensor, mesh: DeviceMesh | None, placements: Placements = ()) -> tuple[nn.Parameter, ADOPT]:
    """Return a parameter after three steps, as a DTensor if there is a mesh."""

    def placed(t: Tensor) -> Tensor:
        if mesh is None:
            return t
        return DTensor.from_local(t, mesh, placements, run_check=False, shape=t.shape, stride=t.stride())

    generator = torch.Generator().manual_seed(1)
    p = nn.Parameter(placed(whole.clone()))
    optimizer = ADOPT([p], lr=0.01, state_bits=8)
    for _ in range(3):
        p.grad = placed(torch.randn(whole.shape, generator=generator))
        optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("placements", WHOLE_ROWS, ids=str)
def test_shards_of_whole_rows_have_8_bits(
    placements: Placements, mesh: DeviceMesh, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_warned", set())
    whole = torch.randn(8, 16, 64, generator=torch.Generator().manual_seed(0))
    p, optimizer = trained(whole, mesh, placements)
    state = optimizer.state[p]
    assert bits_of(state) == 8
    assert all(state[name].placements == placements for name in CODES)
    assert [tuple(state[name].shape) for name in CODES] == [(8, 16, 64), (8, 16, 64), (8, 4, 3)]
    assert not caplog.records
    if not any(isinstance(placement, Shard) for placement in placements):  # shards draw bits of their own
        plain, _ = trained(whole, None)
        assert torch.equal(p.to_local(), plain)  # type: ignore[attr-defined]


@pytest.mark.parametrize("placements", OTHERS, ids=str)
def test_other_shards_keep_float32_and_a_warning_says_so_once(
    placements: Placements, mesh: DeviceMesh, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_warned", set())
    caplog.set_level(logging.WARNING, "adopt_hf")
    for _ in range(2):
        p, optimizer = trained(torch.ones(8, 16, 64), mesh, placements)
        assert bits_of(optimizer.state[p]) == 32
    (record,) = caplog.records
    assert "of shape (8, 16, 64) stay in float32" in record.getMessage()
    assert f"sharded as {placements}" in record.getMessage()
    assert "state_bits=16 has no such limit" in record.getMessage()


def test_a_small_tensor_is_no_reason_to_warn(
    mesh: DeviceMesh, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "_warned", set())
    p, optimizer = trained(torch.ones(8, 16), mesh, (Replicate(), Shard(1)))
    assert bits_of(optimizer.state[p]) == 32
    assert not caplog.records
