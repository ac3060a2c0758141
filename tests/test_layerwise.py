"""LayerwiseADOPT: the weights and the state of ADOPT, with the gradients gone by the end of `backward()`."""

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adopt_hf import ADOPT, LayerwiseADOPT, param_groups


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 1))


def loss(module: nn.Module, step: int) -> Tensor:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    return (module(x) - x.sum(1, keepdim=True).sin()).square().mean()


def train(module: nn.Module, optimizer: ADOPT, first: int, last: int) -> None:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))
    for step in range(first, last):
        loss(module, step).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("options", [{}, {"state_bits": 8, "block_size": 64}, {"betas": (0.8, 0.99), "decouple": True}])
def test_it_is_adopt(options: dict[str, Any]) -> None:
    whole, layerwise = model(), model()
    optimizers = []
    for module, cls in ((whole, ADOPT), (layerwise, LayerwiseADOPT)):
        optimizer = cls(param_groups(module, 0.1), lr=0.05, **options)
        train(module, optimizer, 0, 8)
        optimizers.append(optimizer)
    for p, q in zip(whole.parameters(), layerwise.parameters(), strict=True):
        assert torch.equal(p, q)
        for name, value in optimizers[0].state[p].items():
            assert torch.equal(value, optimizers[1].state[q][name]), name


def test_gradients_never_exist_at_once() -> None:
    module = model()
    kept = LayerwiseADOPT(module.parameters(), lr=0.05)
    alive: list[int] = []
    for p in module.parameters():  # after the optimizer's own
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in module.parameters()))
        )
    loss(module, 0).backward()
    assert len(alive) == len(list(module.parameters()))
    assert max(alive) == 0
    assert len(kept.state) == len(alive)


def test_a_second_gradient_before_the_step_is_an_error() -> None:
    module = model()
    optimizer = LayerwiseADOPT(module.parameters())
    loss(module, 0).backward()
    with pytest.raises(RuntimeError, match=r"second gradient before step\(\).*cannot accumulate"):
        loss(module, 1).backward()
    optimizer.step()
    module.zero_grad()
    loss(module, 2).backward()


def test_frozen_and_late_parameters() -> None:
    module = model()
    late = nn.Parameter(torch.ones(8))
    optimizer = LayerwiseADOPT(list(module.parameters())[2:], lr=0.1)
    before = [p.detach().clone() for p in module.parameters()]
    for step in range(3):
        loss(module, step).backward()
        optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True)]
    assert moved == [False, False] + [True] * 6
    optimizer.add_param_group({"params": [late]})
    for _ in range(2):
        (late**2).sum().backward()
        optimizer.step()
    assert (late < 1).all()


def test_a_closure() -> None:
    whole, layerwise = model(), model()
    a, b = ADOPT(whole.parameters(), lr=0.05), LayerwiseADOPT(layerwise.parameters(), lr=0.05)

    def closure() -> float:
        value = loss(layerwise, 0)
        value.backward()
        return value.item()

    for _ in range(3):
        a.zero_grad()
        expected = loss(whole, 0)
        expected.backward()
        a.step()
        assert b.step(closure) == expected.item()
    assert all(map(torch.equal, whole.parameters(), layerwise.parameters()))


def test_resume_is_exact_and_states_are_those_of_adopt() -> None:
    whole = model()
    optimizer = LayerwiseADOPT(whole.parameters(), lr=0.05)
    train(whole, optimizer, 0, 4)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    weights = copy.deepcopy(whole.state_dict())
    for cls in (ADOPT, LayerwiseADOPT):
        module = model()
        module.load_state_dict(weights)
        other = cls(module.parameters(), lr=1.0)
        saved.seek(0)
        other.load_state_dict(torch.load(saved, weights_only=True))
        for step in range(4, 8):
            loss(module, step).backward()
            other.step()
            other.zero_grad()
        if cls is ADOPT:
            expected = copy.deepcopy(module.state_dict())
    assert all(torch.equal(expected[name], t) for name, t in module.state_dict().items())


def test_the_hooks_do_not_keep_it_alive() -> None:
    module = model()
    optimizer = LayerwiseADOPT(module.parameters())
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None
    loss(module, 0).backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_pickle_works_on() -> None:
    module = model()
    together = pickle.loads(pickle.dumps((module, LayerwiseADOPT(module.parameters(), lr=0.1))))
    module, optimizer = together
    before = copy.deepcopy(module.state_dict())
    for step in range(2):
        loss(module, step).backward()
        optimizer.step()
    assert any(not torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())


def test_what_is_unfrozen_later_is_updated_once_a_step() -> None:
    results = []
    for cls in (ADOPT, LayerwiseADOPT):
        module = model()
        module[3].weight.requires_grad_(False)
        optimizer = cls(module.parameters(), lr=0.05)
        train(module, optimizer, 0, 2)
        module[3].weight.requires_grad_(True)
        train(module, optimizer, 2, 6)
        assert optimizer.state[module[3].weight]["step"] == 4
        results.append(module)
    assert all(map(torch.equal, results[0].parameters(), results[1].parameters()))


def test_an_interrupted_backward() -> None:
    module = model()
    optimizer = LayerwiseADOPT(module.parameters(), lr=0.05)
    handle = module[0].weight.register_hook(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss(module, 0).backward()
    handle.remove()
    with pytest.raises(RuntimeError, match=r"interrupted call the optimizer's zero_grad\(\)"):
        loss(module, 1).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in module.parameters())
    train(module, optimizer, 2, 4)


def test_a_grad_scaler_is_an_error() -> None:
    module = model()
    optimizer = LayerwiseADOPT(module.parameters())
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss(module, 0)).backward()
    with pytest.raises(RuntimeError, match="gradients of the scaled loss: use bfloat16"):
        scaler.step(optimizer)


def test_step_hooks_run_once_a_step() -> None:
    ADOPT(model().parameters())
    module = model()
    optimizer = LayerwiseADOPT(module.parameters())
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(module, optimizer, 0, 3)
    assert len(calls) == 3
