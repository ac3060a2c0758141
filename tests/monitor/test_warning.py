"""The warning of a Monitor when most elements are clipped for many steps."""

import logging

import pytest
import torch
from torch import nn

import adopt_hf


def test_much_clipping_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    p = nn.Parameter(torch.ones(8))
    optimizer = adopt_hf.ADOPT([p], lr=1e-6, clip_exp=0.0)
    monitor = adopt_hf.Monitor(optimizer, every=20)
    caplog.set_level(logging.WARNING, "adopt_hf")

    def warnings() -> list[str]:
        return [r.getMessage() for r in caplog.records if "clipped" in r.getMessage()]

    for step in range(1, 500):
        p.grad = torch.full((8,), 1.0 + step)
        optimizer.step()
        if step < 220:
            assert not warnings()
    monitor.figures()
    (message,) = warnings()
    assert "beta2_warmup=true" in message
    assert "0.9999" in message
