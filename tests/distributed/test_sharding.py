"""FSDP2 on two real processes: sharded training is the training of one process, also where a shard sees nothing yet.

The token rows of the second process get their first gradient later than those of the first: the step count of the
table, and with it the clip, must be the whole tensor's on both.
"""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from adopt_hf import ADOPT

WORLD, STEPS, ROWS = 2, 20, 8


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 6)
        self.hidden = nn.Linear(6, 5)
        self.out = nn.Linear(5, 1, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(self.table(tokens)))).squeeze(-1)


def model() -> Model:
    torch.manual_seed(0)
    return Model()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of the first half of the table until step 5, of all of it from then on."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, ROWS // 2 if step < 5 else ROWS, (16,), generator=generator)
    return tokens, torch.sin(tokens.float())


def train(module: nn.Module, optimizer: ADOPT, rank: int = 0, world: int = 1) -> None:
    for step in range(STEPS):
        tokens, target = (t.chunk(world)[rank] for t in batch(step))
        (module(tokens) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def sharded(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    module = model()
    fully_shard(module, mesh=init_device_mesh("cpu", (WORLD,)))
    optimizer = ADOPT(module.parameters(), lr=0.01, weight_decay=0.1, decouple=True)
    train(module, optimizer, rank, WORLD)
    table = module.table.weight
    assert isinstance(table, DTensor)
    assert table.to_local().shape[0] == ROWS // WORLD
    assert dist.get_world_size() == WORLD
    result = {name: p.full_tensor() for name, p in module.named_parameters()}
    steps = [optimizer.state[p]["step"].item() for p in module.parameters()]
    torch.save((result, steps), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.everyday
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(sharded, (str(tmp_path),), nprocs=WORLD)
    single = model()
    optimizer = ADOPT(single.parameters(), lr=0.01, weight_decay=0.1, decouple=True)
    train(single, optimizer)
    for rank in range(WORLD):
        parameters, steps = torch.load(tmp_path / f"rank{rank}.pt")
        assert steps == [optimizer.state[p]["step"].item() for p in single.parameters()] == [STEPS] * len(steps)
        for name, p in single.named_parameters():
            torch.testing.assert_close(parameters[name], p.detach(), rtol=0, atol=1e-6)
