"""The warning of a Monitor when most elements are clipped for many steps."""

import logging

import pytest
import torch
from torch import nn

import adopt_hf
from adopt_hf import monitor as monitor_module


def train_with_much_clipping(caplog: pytest.LogCaptureFixture) -> list[int]:
    """Return the number of warnings after each step."""
    p = nn.Parameter(torch.ones(8))
    optimizer = adopt_hf.ADOPT([p], lr=1e-6, clip_exp=0.0)
    monitor = adopt_hf.Monitor(optimizer, every=20)
    counts = []
    for step in range(1, 500):
        p.grad = torch.full((8,), 1.0 + step)
        optimizer.step()
        counts.append(len(messages(caplog)))
    monitor.figures()
    return counts


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "clipped" in r.getMessage()]


def test_much_clipping_is_warned_of_once_a_process(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "_warned", set())
    caplog.set_level(logging.WARNING, "adopt_hf")
    assert not any(train_with_much_clipping(caplog)[:219])
    (message,) = messages(caplog)
    assert "beta2_warmup=true" in message
    assert "0.9999" in message
    train_with_much_clipping(caplog)  # as the next trial of a hyperparameter search does
    assert len(messages(caplog)) == 1
