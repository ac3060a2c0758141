"""Moments in 8 bits under FSDP2 on two real processes:

- the state is sharded as the parameter is, has the blocks of the whole tensor, and goes to one process and back;
- shards draw different random bits, replicas the same;
- a saved and resumed run is the uninterrupted one, bit for bit.
"""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from adopt_hf import ADOPT
from adopt_hf.state.conversion import CODES, FLOATS, bits_of
from adopt_hf.state.quantization import Quantized, dequantize

WORLD = 2
WHOLE = StateDictOptions(full_state_dict=True)


def model() -> nn.Module:
    """Rows that do not divide evenly; a tensor of one dimension, which keeps float32 where it is sharded."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(300, 65), nn.Tanh(), nn.Linear(65, 80), nn.Linear(80, 1))
    module.register_parameter("gain", nn.Parameter(torch.ones(5000)))
    return module


def loss(module: nn.Module, step: int, rank: int = 0, world: int = 1) -> torch.Tensor:
    x = torch.randn(8, 300, generator=torch.Generator().manual_seed(step)).chunk(world)[rank]
    gain = module.gain
    gain = gain.full_tensor() if isinstance(gain, DTensor) else gain
    return (module(x) - x.sum(1, keepdim=True).sin()).square().mean() + (gain[step::7] ** 2).mean()


def train(module: nn.Module, optimizer: ADOPT, first: int, last: int, rank: int = 0, world: int = 1) -> None:
    for step in range(first, last):
        loss(module, step, rank, world).backward()
        optimizer.step()
        optimizer.zero_grad()


def sharded_model() -> nn.Module:
    module = model()
    fully_shard(module, mesh=init_device_mesh("cpu", (WORLD,)))
    return module


def on_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    seen: dict[str, Any] = {}
    module = sharded_model()
    optimizer = ADOPT(module.parameters(), lr=0.01, state_bits=8)
    train(module, optimizer, 0, 5, rank, WORLD)
    half = copy.deepcopy(get_optimizer_state_dict(module, optimizer))
    weights = {name: p.full_tensor().detach() for name, p in module.named_parameters()}
    local = {name: dict(optimizer.state[p]) for name, p in module.named_parameters()}
    seen["bits"] = {name: bits_of(state) for name, state in local.items()}
    seen["dtensors"] = all(isinstance(t, DTensor) for state in local.values() for k, t in state.items() if k != "step")
    seen["shapes"] = {name: {k: tuple(t.shape) for k, t in state.items()} for name, state in local.items()}
    seen["state"] = copy.deepcopy(get_optimizer_state_dict(module, optimizer, options=WHOLE))
    seen["weights"] = weights
    train(module, optimizer, 5, 10, rank, WORLD)

    again = sharded_model()
    for name, p in again.named_parameters():
        p.data.copy_(distribute_tensor(weights[name], p.device_mesh, p.placements))
    resumed = ADOPT(again.parameters(), lr=0.5, state_bits=8)
    set_optimizer_state_dict(again, resumed, half)
    train(again, resumed, 5, 10, rank, WORLD)
    for p, q in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())
        for name, value in optimizer.state[p].items():
            other = resumed.state[q][name]
            assert torch.equal(*(t.to_local() if isinstance(t, DTensor) else t for t in (value, other))), name

    mesh = init_device_mesh("cpu", (WORLD,))
    for placement in (Shard(0), Replicate()):
        p = nn.Parameter(distribute_tensor(torch.ones(64, 256, dtype=torch.bfloat16), mesh, [placement]))
        rounded = ADOPT([p], lr=1e-3, bf16_stochastic_round=True)
        for _ in range(2):
            p.grad = distribute_tensor(torch.ones(64, 256, dtype=torch.bfloat16), mesh, [placement])
            rounded.step()
        seen[type(placement).__name__] = p.to_local().detach().clone()[:32]
    torch.save(seen, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_on_two_processes(tmp_path: Path) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(on_two, (str(tmp_path),), nprocs=WORLD)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD))
    for seen in (first, second):
        assert seen["dtensors"]
        assert seen["bits"] == {
            "gain": 32, "0.weight": 8, "0.bias": 32, "2.weight": 32, "2.bias": 32, "3.weight": 32, "3.bias": 32,
        }  # fmt: skip
        assert seen["shapes"]["0.weight"] == {
            "step": (), "exp_avg_codes": (65, 300), "exp_avg_sq_codes": (65, 300), "scales": (65, 2, 3),
        }  # fmt: skip
    assert not torch.equal(first["Shard"], second["Shard"])
    assert torch.equal(first["Replicate"], second["Replicate"])
    assert 0 < (first["Shard"] < 1).float().mean() < 1

    # The whole state, in one process: 8-bit as it is, float32 where a shard had to be.
    single = model()
    with torch.no_grad():
        for name, p in single.named_parameters():
            p.copy_(first["weights"][name])
    for bits in (8, 32):
        optimizer = ADOPT(single.parameters(), lr=0.01, state_bits=bits)
        set_optimizer_state_dict(single, optimizer, first["state"], options=WHOLE)
        state, saved = optimizer.state[single[0].weight], first["state"]["state"]["0.weight"]
        codes = Quantized(*(saved[name] for name in CODES))
        if bits == 8:
            assert all(torch.equal(state[name], saved[name]) for name in CODES)
            gain = optimizer.state[single.gain]
            assert bits_of(gain) == 8
            saved_v, v = (
                first["state"]["state"]["gain"]["exp_avg_sq"],
                dequantize(Quantized(*map(gain.get, CODES)), 256)[1],
            )
            assert torch.equal(saved_v == 0, v == 0)
            assert ((v - saved_v).abs() <= 0.26 * saved_v).all()
        else:
            assert all(torch.equal(state[name], x) for name, x in zip(FLOATS, dequantize(codes, 256), strict=True))
        train(single, optimizer, 5, 6)
