"""`Accelerator.prepare` with ADOPT, in one process; launches with several are in tests/distributed."""

import torch
from accelerate import Accelerator
from torch import nn

from adopt_hf import ADOPT


def test_float32_moments_of_bfloat16_parameters_survive_prepare() -> None:
    """`prepare` loads an optimizer's own state dict back into it, and torch alone would cast the moments."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(torch.bfloat16)
    optimizer = ADOPT(model.parameters())
    for _ in range(3):
        model(torch.randn(8, 4, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
    before = [state["exp_avg_sq"].clone() for state in optimizer.state.values()]
    _, prepared = Accelerator(cpu=True).prepare(model, optimizer)
    assert type(prepared.optimizer) is ADOPT
    for state, expected in zip(prepared.optimizer.state.values(), before, strict=True):
        assert state["exp_avg_sq"].dtype == torch.float32
        assert torch.equal(state["exp_avg_sq"], expected)
        assert state["step"].item() == 3
    assert any(not torch.equal(v, v.bfloat16().float()) for v in before)  # bfloat16 could not have held them
