"""First steps that train nothing are said, once a process, and nothing else is.

- a first step without any gradient: a model that was materialised after the optimizer was made, or no backward();
- optimizers that all end after their first step, as in federated learning with one local step. The docs say how far a
  model comes by that; it is measured here.
"""

import gc
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from adopt_hf import ADOPT, LayerwiseADOPT, first_steps

DOCS = Path(__file__).parents[2] / "docs" / "integrations.md"
ROUNDS = 20


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    gc.collect()
    monkeypatch.setattr(first_steps, "_warned", set())
    monkeypatch.setattr(first_steps, "_short_lives", {})
    caplog.set_level(logging.WARNING, "adopt_hf")
    return lambda: [record.getMessage() for record in caplog.records]


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 3)).square().sum().backward()


def test_to_empty_after_the_optimizer_was_made(said: Callable[[], list[str]]) -> None:
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    optimizers = [ADOPT(model.parameters(), lr=0.1) for _ in range(2)]
    model.to_empty(device="cpu")
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    for _ in range(3):
        for optimizer in optimizers:
            backward(model)
            optimizer.step()
    (line,) = said()
    assert line.startswith("step() was called, and none of the 2 parameters of this ADOPT has or had a gradient")
    assert "to_empty()" in line


@pytest.mark.parametrize("late", [False, True])
def test_gradients_of_some_are_enough(late: bool, said: Callable[[], list[str]]) -> None:
    """Frozen and late parameters, set_to_none, a loaded state, and an optimizer without parameters are in order."""
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(not late)
    optimizer = ADOPT(model.parameters())
    backward(model)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    loaded = ADOPT(model.parameters())
    loaded.load_state_dict(optimizer.state_dict())
    loaded.step()
    ADOPT([{"params": []}]).step()
    layerwise = LayerwiseADOPT(model.parameters())
    backward(model)
    layerwise.step()
    assert said() == []


def federated(cls: Callable[..., torch.optim.Optimizer], local_steps: int) -> float:
    """Return how far 20 rounds of `local_steps` steps, each with a new optimizer, move a small model, in 2-norms."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)), torch.randn(64, 8)
    y = x.sum(1, keepdim=True).sin()
    before = torch.cat([p.detach().flatten() for p in model.parameters()]).clone()
    for _ in range(ROUNDS):
        optimizer = cls(model.parameters(), lr=1e-2)
        for _ in range(local_steps):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
    return float((torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm())


def test_optimizers_that_end_after_their_first_step(said: Callable[[], list[str]]) -> None:
    assert federated(ADOPT, 1) == 0
    (line,) = said()
    assert line.startswith("3 ADOPT optimizers in a row were deleted after their first step")


@pytest.mark.parametrize("local_steps", [2, 4])
def test_more_local_steps_say_nothing(local_steps: int, said: Callable[[], list[str]]) -> None:
    federated(ADOPT, local_steps)
    assert said() == []


def test_one_long_life_between_them_says_nothing(said: Callable[[], list[str]]) -> None:
    model = nn.Linear(3, 2)
    for steps in (1, 1, 2, 1, 1, 3):
        optimizer = ADOPT(model.parameters())
        for _ in range(steps):
            backward(model)
            optimizer.step()
    assert said() == []


def test_a_kept_optimizer_says_nothing(said: Callable[[], list[str]]) -> None:
    """Do as the warning says: the state goes along from round to round."""
    model, state = nn.Linear(3, 2), None
    before = model.weight.detach().clone()
    for _ in range(6):
        optimizer = ADOPT(model.parameters())
        if state is not None:
            optimizer.load_state_dict(state)
        backward(model)
        optimizer.step()
        state = optimizer.state_dict()
    assert said() == []
    assert not torch.equal(model.weight, before)


def test_the_figures_in_the_docs() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for cls in (ADOPT, torch.optim.AdamW):
        row = re.search(rf"\| {cls.__name__} \|(.*)\|\n", page)
        assert row is not None
        shown = [float(cell) for cell in row[1].split("|")]
        assert shown == pytest.approx([federated(cls, n) for n in (1, 2, 4)], abs=0.011)
