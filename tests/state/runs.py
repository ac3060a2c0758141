"""Short runs of ADOPT, in each format, whose states the tests save and load."""

from typing import Any

import torch
from torch import Tensor, nn

from adopt_hf import ADOPT

SHAPES = ((64, 128), (3, 4))
FORMS: dict[str, dict[str, Any]] = {
    "32 bits": {},
    "16 bits": {"state_bits": 16},
    "8 bits": {"state_bits": 8, "block_size": 64},
    "two groups": {"weight_decay": 0.1, "decouple": True},
}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def optimizer_of(params: list[nn.Parameter], form: str, **options: Any) -> ADOPT:
    named = list(zip(("a.weight", "b.weight"), params, strict=True))
    groups: Any = [{"params": [pair]} for pair in named] if form == "two groups" else named
    return ADOPT(groups, lr=0.01, **(FORMS[form] | options))


def train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def snapshot(optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], str]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [t for p in params for t in (p, *optimizer.state[p].values())]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    keys = [list(optimizer.state[p]) for p in params]
    return [t.detach().clone() for t in tensors], repr((groups, keys, len(optimizer.state)))


def assert_unchanged(optimizer: ADOPT, before: tuple[list[Tensor], str]) -> None:
    after = snapshot(optimizer)
    assert after[1] == before[1]
    assert all(map(torch.equal, before[0], after[0]))
