"""ADOPTW: ADOPT with other defaults, by every name that it is asked for, and no other difference."""

import copy
import dataclasses
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import adopt_hf
from adopt_hf import ADOPT, ADOPTW, LayerwiseADOPT, LayerwiseADOPTW, algorithm, hyperparameters
from adopt_hf.hyperparameters import HYPERPARAMETERS, OF_ADOPTW, RUNNING_MEAN, WARMUP_EXPONENT
from adopt_hf.identity import is_adopt_optimizer

PAIRS = [(ADOPT, ADOPTW), (LayerwiseADOPT, LayerwiseADOPTW)]


def leaf() -> Tensor:
    return torch.linspace(-1, 1, 6).reshape(2, 3).clone().requires_grad_()


def train(optimizer: torch.optim.Optimizer, p: Tensor, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        (p * torch.randn(p.shape, generator=generator)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}


@pytest.mark.parametrize(("plain", "w"), PAIRS)
def test_two_defaults_differ_and_nothing_else(plain: type[ADOPT], w: type[ADOPT]) -> None:
    a, b = options(plain([leaf()])), options(w([leaf()]))
    assert a.keys() == b.keys()
    assert {name for name in a if a[name] != b[name]} == set(OF_ADOPTW)
    assert (b["decouple"], b["beta2_warmup"]) == (True, WARMUP_EXPONENT)
    assert issubclass(w, ADOPTW)
    assert is_adopt_optimizer(w)
    same = w([leaf()], decouple=False, beta2_warmup=False)
    assert options(same) == a


def test_the_signature_has_the_defaults() -> None:
    """As configuration libraries read it, which build a class by its path."""
    of = {cls: inspect.signature(cls).parameters for cls in (ADOPT, ADOPTW)}
    shared = [name for name, p in of[ADOPTW].items() if p.kind is not p.VAR_KEYWORD]
    assert {name for name in shared if of[ADOPT][name].default != of[ADOPTW][name].default} == set(OF_ADOPTW)
    assert {name: of[ADOPTW][name].default for name in OF_ADOPTW} == OF_ADOPTW


@pytest.mark.parametrize("name", ["beta3", "foreach"])
def test_a_wrong_argument_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=f"has no argument '{name}'"):
        ADOPTW([leaf()], **{name: True})


def test_weight_decay_is_that_of_adamw() -> None:
    """A parameter without a gradient signal shrinks by lr * weight_decay a step, whatever v is."""
    p = torch.ones(4, requires_grad=True)
    optimizer = ADOPTW([p], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        p.grad = torch.full_like(p, 1e-30)
        optimizer.step()
    assert torch.allclose(p, torch.full_like(p, 0.95**2), atol=1e-6)


@pytest.mark.parametrize(("saved", "loaded"), [pair for a, b in PAIRS for pair in ((a, b), (b, a))])
@pytest.mark.parametrize("route", ["state_dict", "file"])
def test_a_state_brings_its_options_along(saved: type[ADOPT], loaded: type[ADOPT], route: str) -> None:
    p, q = leaf(), leaf()
    before, whole = saved([p], lr=0.1, weight_decay=0.1), saved([q], lr=0.1, weight_decay=0.1)
    train(before, p, range(4))
    state = before.state_dict()
    if route == "file":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    resumed = p.detach().clone().requires_grad_()
    after = loaded([resumed], lr=0.1)
    after.load_state_dict(copy.deepcopy(state))
    assert options(after) == options(before)
    train(after, resumed, range(4, 8))
    train(whole, q, range(8))
    assert torch.equal(resumed, q)


@pytest.mark.parametrize("cls", [ADOPT, ADOPTW])
def test_a_pickle_is_what_it_was(cls: type[ADOPT]) -> None:
    p = leaf()
    optimizer = cls([p], lr=0.1)
    train(optimizer, p, range(3))
    again = pickle.loads(pickle.dumps(optimizer))
    assert type(again) is cls
    assert options(again) == options(optimizer)
    assert again.defaults == optimizer.defaults


@pytest.fixture
def another_exponent(monkeypatch: pytest.MonkeyPatch) -> float:
    """The warm-up's exponent is another one than in the version that wrote a state."""
    row = dataclasses.replace(HYPERPARAMETERS["beta2_warmup"], true=0.7)
    monkeypatch.setitem(HYPERPARAMETERS, "beta2_warmup", row)
    for module in (algorithm, hyperparameters):
        monkeypatch.setattr(module, "WARMUP_EXPONENT", 0.7)
    return 0.7


def test_true_of_an_earlier_version_is_the_running_mean(another_exponent: float) -> None:
    p = leaf()
    optimizer = ADOPTW([p], lr=0.1)
    assert optimizer.param_groups[0]["beta2_warmup"] == another_exponent
    train(optimizer, p, range(3))
    earlier = optimizer.state_dict()
    earlier["param_groups"][0]["beta2_warmup"] = True
    optimizer.load_state_dict(earlier)
    assert optimizer.param_groups[0]["beta2_warmup"] == RUNNING_MEAN == 1

    optimizer.param_groups[0]["beta2_warmup"] = optimizer.defaults["beta2_warmup"] = True
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.param_groups[0]["beta2_warmup"] is again.defaults["beta2_warmup"] is RUNNING_MEAN


def test_true_that_is_written_into_a_group_is_the_present_exponent(another_exponent: float) -> None:
    p, q = leaf(), leaf()
    written, given = ADOPT([p], lr=0.1), ADOPT([q], lr=0.1, beta2_warmup=another_exponent)
    written.param_groups[0]["beta2_warmup"] = True
    train(written, p, range(4))
    train(given, q, range(4))
    assert torch.equal(p, q)
    assert written.state_dict()["param_groups"][0]["beta2_warmup"] == another_exponent  # and not True


@pytest.mark.parametrize("value", [2.0, -0.5, float("nan")])
def test_a_bad_exponent_in_a_group_raises_before_anything_changes(value: float) -> None:
    p = leaf()
    optimizer = ADOPTW([p], lr=0.1)
    train(optimizer, p, range(2))
    before = p.detach().clone()
    optimizer.param_groups[0]["beta2_warmup"] = value
    with pytest.raises(ValueError, match="beta2_warmup must be True, False or a number"):
        train(optimizer, p, range(2, 3))
    assert torch.equal(p, before)


def test_a_state_of_another_implementation_has_no_warmup() -> None:
    """It was begun without, and goes on so."""
    p = leaf()
    optimizer = ADOPT([p], lr=0.1)
    train(optimizer, p, range(2))
    state = optimizer.state_dict()
    del state["param_groups"][0]["beta2_warmup"]
    loaded = ADOPTW([leaf()])
    loaded.load_state_dict(state)
    assert loaded.param_groups[0]["beta2_warmup"] is False


def test_it_is_public() -> None:
    assert {"ADOPT", "ADOPTW", "LayerwiseADOPT", "LayerwiseADOPTW"} <= set(adopt_hf.__all__)
