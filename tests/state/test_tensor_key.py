"""One optimizer for each parameter: each has random bits of its own, in all processes and after a resume the same."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.state import rounding

FORMS: list[dict[str, Any]] = [{"bf16_stochastic_round": True}, {"state_bits": 16}, {"state_bits": 8}]


def parameters(fill: float | None = None) -> list[nn.Parameter]:
    """Three tensors of one shape, as the layers of a model have them."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(64, 128, generator=generator) for _ in range(3)]
    return [nn.Parameter((t if fill is None else torch.full_like(t, fill)).bfloat16()) for t in tensors]


def step(params: list[nn.Parameter], optimizers: list[ADOPT], t: int, alike: bool = False) -> None:
    for i, (p, optimizer) in enumerate(zip(params, optimizers, strict=True)):
        generator = torch.Generator().manual_seed(100 * t + (0 if alike else i))
        p.grad = torch.randn(p.shape, generator=generator).bfloat16()
        optimizer.step()


def rounded_up(params: list[nn.Parameter], optimizers: list[ADOPT]) -> list[Tensor]:
    """Return which elements are rounded up if all tensors hold the same numbers: in theta, or in v."""
    found = []
    for p, optimizer in zip(params, optimizers, strict=True):
        p.data.fill_(1)
        p.grad = torch.full_like(p, 0.1)
        optimizer.load_state_dict(optimizer.state_dict())
        state = optimizer.state[p]
        if "scales" in state:
            state["exp_avg_codes"].fill_(9)
            state["exp_avg_sq_codes"].fill_(40)
            state["scales"].copy_(torch.tensor([1e-3, 1e-3, 5.0]).expand_as(state["scales"]))
        else:
            state["exp_avg"].fill_(0.25)
            state["exp_avg_sq"].fill_(0.25)
        optimizer.step()
        if "scales" in state:
            found.append(state["exp_avg_sq_codes"].clone())
        else:
            rounds_moments = state["exp_avg"].dtype == torch.bfloat16
            found.append(state["exp_avg"].clone() if rounds_moments else p.detach().clone())
    return found


def one_each(params: list[nn.Parameter], form: dict[str, Any], **more: Any) -> list[ADOPT]:
    return [ADOPT([p], lr=1e-3, **form, **more) for p in params]


def keys(optimizers: list[ADOPT]) -> list[Any]:
    return [optimizer.param_groups[0].get("tensor_key") for optimizer in optimizers]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_each_draws_bits_of_its_own(form: dict[str, Any]) -> None:
    params = parameters()
    optimizers = one_each(params, form)
    for t in range(2):
        step(params, optimizers, t)
    a, b, c = rounded_up(params, optimizers)
    assert a.unique().numel() > 1  # some up, some down
    assert not torch.equal(a, b)
    assert not torch.equal(b, c)
    assert not torch.equal(a, c)


def test_alike_in_the_beginning_and_told_apart_by_gradient_or_name() -> None:
    """Norms begin as ones, LoRA's B as zeros. Without a name and with equal gradients they are the same run twice."""
    form = FORMS[0]
    for alike, named, different in ((False, False, 3), (True, True, 3), (True, False, 1)):
        params = parameters(fill=0)
        optimizers = [ADOPT([(f"layers.{i}.norm", p)] if named else [p], lr=1e-3, **form) for i, p in enumerate(params)]
        step(params, optimizers, 0, alike)
        assert len(set(keys(optimizers))) == different


def test_the_key_is_the_same_everywhere() -> None:
    """A constant, so that processes and versions agree; the name with the prefixes of wrappers is the same name."""
    found = []
    for name in ("layers.0.weight", "module.layers.0.weight", "_orig_mod.layers.0.weight"):
        p = nn.Parameter(torch.arange(8192.0).view(64, 128).bfloat16())
        for optimizer in (ADOPT([(name, p)], state_bits=16), ADOPT([p], state_bits=16)):
            p.grad = torch.ones_like(p)
            optimizer.step()
            found.append(optimizer.param_groups[0]["tensor_key"])
    assert found == [2684027527, 3316659967] * 3


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_resumed_run_draws_on(form: dict[str, Any]) -> None:
    whole = parameters()
    optimizers = one_each(whole, form)
    for t in range(3):
        step(whole, optimizers, t)
    resumed = copy.deepcopy(whole)
    again = one_each(resumed, form, seed=5)
    for new, old in zip(again, optimizers, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert keys(again) == keys(optimizers)
    for t in range(3, 6):
        step(whole, optimizers, t)
        step(resumed, again, t)
    assert all(map(torch.equal, whole, resumed))


def test_the_seed_still_counts_and_zero_gradients_do_not() -> None:
    ends = []
    for seed, zeros in ((0, 0), (0, 2), (1, 0)):
        params = parameters()
        optimizers = one_each(params, FORMS[0], seed=seed)
        for p, optimizer in zip(params, optimizers, strict=True):
            for _ in range(zeros):  # as frameworks do to create state
                p.grad = torch.zeros_like(p)
                optimizer.step()
        for t in range(4):
            step(params, optimizers, t)
        ends.append(params)
    assert all(map(torch.equal, ends[0], ends[1]))
    assert not any(map(torch.equal, ends[0], ends[2]))


@pytest.mark.parametrize("cls", [ADOPT, LayerwiseADOPT])
def test_only_the_only_parameter_of_rounded_results_has_a_key(cls: type[ADOPT]) -> None:
    a, b, c = parameters()
    several, plain = cls([a, b], state_bits=16), cls([c])
    (a.square().sum() + b.square().sum() + c.square().sum()).backward()
    for optimizer in (several, plain):
        optimizer.step()
        assert rounding.TENSOR_KEY not in optimizer.param_groups[0]


def test_layerwise_with_one_parameter_is_adopt() -> None:
    ends = []
    for cls in (ADOPT, LayerwiseADOPT):
        p = parameters()[0]
        optimizer = cls([p], lr=1e-2, **FORMS[0])
        for t in range(4):
            (p.float() * torch.randn(64, 128, generator=torch.Generator().manual_seed(t))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append((p, optimizer.param_groups[0]["tensor_key"]))
    assert torch.equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_a_key_that_is_no_number_is_refused() -> None:
    params = parameters()
    optimizers = one_each(params, FORMS[1])
    step(params, optimizers, 0)
    saved = optimizers[0].state_dict()
    saved["param_groups"][0]["tensor_key"] = -1
    with pytest.raises(ValueError, match=r"tensor_key must be a whole number in \[0, .*, got -1"):
        ADOPT([params[1]], state_bits=16).load_state_dict(saved)
