"""LayerwiseADOPT: the weights and the state of ADOPT, with the gradients gone by the end of `backward()`."""

import copy
import gc
import io
import logging
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adopt_hf import ADOPT, LayerwiseADOPT, param_groups
from adopt_hf import layerwise as layerwise_module


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
    with pytest.raises(RuntimeError, match=r"interrupted backward\(\) call the optimizer's zero_grad\(\)"):
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


# -- gradients that are not its own ------------------------------------------------------------------------------------


def gan(cls: type[ADOPT], freezes: bool, steps: int = 6) -> tuple[nn.Module, float]:
    """The usual loop. Returns the discriminator, and how far the generator's `backward()` has moved it."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    discriminator = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    of_g, of_d = cls(generator.parameters(), lr=1e-2), cls(discriminator.parameters(), lr=1e-2)
    loss, moved = nn.BCEWithLogitsLoss(), 0.0
    for t in range(steps):
        random = torch.Generator().manual_seed(t)
        real, noise = torch.randn(32, 2, generator=random) + 2, torch.randn(32, 4, generator=random)
        of_d.zero_grad()
        judged = torch.cat([discriminator(real), discriminator(generator(noise).detach())])
        loss(judged, torch.cat([torch.ones(32, 1), torch.zeros(32, 1)])).backward()
        of_d.step()
        before = copy.deepcopy(list(discriminator.parameters()))
        discriminator.requires_grad_(not freezes)
        of_g.zero_grad()
        loss(discriminator(generator(noise)), torch.ones(32, 1)).backward()
        of_g.step()
        discriminator.requires_grad_(True)
        moved = max(
            moved, *((p - q).abs().max().item() for p, q in zip(discriminator.parameters(), before, strict=True))
        )
    return discriminator, moved


def test_a_gan_raises_unless_the_discriminator_is_frozen() -> None:
    with pytest.raises(
        RuntimeError, match=r"updated 4 parameters .* no step\(\) has followed.*generator.*requires_grad_"
    ):
        gan(LayerwiseADOPT, freezes=False)
    (expected, still), (frozen, moved) = gan(ADOPT, freezes=False), gan(LayerwiseADOPT, freezes=True)
    assert still == moved == 0
    assert all(map(torch.equal, expected.parameters(), frozen.parameters()))


@pytest.mark.parametrize("clears", ["optimizer", "module", "nothing"])
def test_an_actor_that_moves_its_critic_raises(clears: str) -> None:
    """As in stable-baselines3's DDPG and TD3: the actor's loss goes through one of two critics."""
    torch.manual_seed(0)
    actor, critics = nn.Linear(3, 2), nn.ModuleList([nn.Linear(5, 1), nn.Linear(5, 1)])
    of_actor, of_critics = LayerwiseADOPT(actor.parameters()), LayerwiseADOPT(critics.parameters())
    seen = torch.randn(8, 3)

    def update() -> None:
        if clears != "nothing":
            (of_critics if clears == "optimizer" else critics).zero_grad()
        both = torch.cat([seen, actor(seen).detach()], 1)
        sum((critic(both) - 1).square().mean() for critic in critics).backward()
        of_critics.step()
        of_actor.zero_grad()
        (-critics[0](torch.cat([seen, actor(seen)], 1)).mean()).backward()
        of_actor.step()

    update()
    with pytest.raises(RuntimeError, match=r"an actor through its critic"):
        update()


def test_a_backward_over_other_parameters_before_the_step_is_an_error() -> None:
    parts = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    optimizer = LayerwiseADOPT(parts.parameters())
    before = copy.deepcopy(parts[1].state_dict())
    parts[0](torch.ones(2, 3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"updated 2 parameters .*Call step\(\) after each backward"):
        parts[1](torch.ones(2, 3)).sum().backward()
    assert all(torch.equal(before[name], t) for name, t in parts[1].state_dict().items())
    optimizer.step()
    parts[1](torch.ones(2, 3)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_one_backward(reentrant: bool) -> None:
    """A reentrant checkpoint runs a backward() of its own inside of the other one."""
    results = []
    for cls in (ADOPT, LayerwiseADOPT):
        module = model()
        optimizer = cls(module.parameters(), lr=0.05)
        for step in range(4):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step)).requires_grad_()
            inner = checkpoint(module[:3], x, use_reentrant=reentrant)
            module[4](checkpoint(module[3], inner, use_reentrant=reentrant)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(module)
    assert all(map(torch.equal, results[0].parameters(), results[1].parameters()))


# -- one owner ---------------------------------------------------------------------------------------------------------


def test_two_of_them_on_one_net_are_an_error() -> None:
    shared, heads = nn.Linear(3, 3), [nn.Linear(3, 1), nn.Linear(3, 1)]
    first = LayerwiseADOPT([*shared.parameters(), *heads[0].parameters()], lr=0.1)
    with pytest.raises(RuntimeError, match=r"shape \(3, 3\) belongs to another LayerwiseADOPT.*release\(\)") as caught:
        LayerwiseADOPT([{"params": heads[1].parameters()}, {"params": shared.parameters()}])
    third = LayerwiseADOPT(heads[1].parameters())  # the one that failed has kept nothing, although it is alive:
    assert caught.traceback
    with pytest.raises(RuntimeError, match="belongs to another"):
        third.add_param_group({"params": shared.parameters()})
    assert len(third.param_groups) == 1
    for _ in range(2):
        (heads[0](shared(torch.ones(2, 3))) + heads[1](torch.ones(2, 3))).sum().backward()
        first.step()
        third.step()
    assert all(p.grad is None for part in (shared, *heads) for p in part.parameters())


def test_a_cell_that_is_run_again() -> None:
    module = model()
    old = LayerwiseADOPT(module.parameters(), lr=0.05)
    with pytest.raises(RuntimeError, match=r"delete all references to it \(del optimizer\)"):
        LayerwiseADOPT(module.parameters(), lr=0.05)
    loss(module, 0).backward()
    old.step()
    old.release()
    new = LayerwiseADOPT(module.parameters(), lr=0.05)
    with pytest.raises(RuntimeError, match=r"called after release\(\)"):
        old.step()
    train(module, new, 0, 3)
    assert all(old.state[p]["step"] == 1 and new.state[p]["step"] == 3 for p in module.parameters())


def test_an_old_one_that_only_waits_to_be_collected_is_no_owner() -> None:
    module = model()
    old: Any = LayerwiseADOPT(module.parameters())
    old.itself = old
    del old
    train(module, LayerwiseADOPT(module.parameters()), 0, 2)


# -- memory that others read, and parameters that change under it ------------------------------------------------------


@pytest.mark.parametrize("read", ["data", "detach", "no_grad view"])
def test_what_the_rest_of_the_graph_reads_is_not_changed(read: str, caplog: pytest.LogCaptureFixture) -> None:
    """`first` is read without a gradient of its own, by a part of the graph whose turn comes after its update."""
    layerwise_module.warned.clear()
    results = []
    for cls in (ADOPT, LayerwiseADOPT):
        torch.manual_seed(0)
        first, second = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        optimizer = cls([first, second], lr=0.1)
        for step in range(4):
            x = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            with torch.no_grad():
                view = first[:]
            reads = {"data": first.data, "detach": first.detach(), "no_grad view": view}[read]
            hidden = (x @ second).tanh() @ reads
            del reads, view
            with caplog.at_level(logging.WARNING, "adopt_hf"):
                (hidden.tanh() @ first).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append((first, second))
    assert all(map(torch.equal, *results))
    assert caplog.text.count("shares the memory of a parameter of shape (4, 4)") == 1


def test_a_graph_that_is_kept_is_refused() -> None:
    module = model()
    optimizer = LayerwiseADOPT(module.parameters())
    value = loss(module, 0)
    value.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_swapped_tensors() -> None:
    results = []
    for cls in (ADOPT, LayerwiseADOPT):
        module = model()
        optimizer = cls(module.parameters(), lr=0.05)
        train(module, optimizer, 0, 2)
        other = nn.Parameter(module[3].weight.detach().clone() * 2)
        torch.utils.swap_tensors(module[3].weight, other)
        train(module, optimizer, 2, 5)
        (other * 2).sum().backward()  # has the hook now, and is none of the optimizer's
        assert other.grad is not None
        results.append(module)
    assert all(map(torch.equal, results[0].parameters(), results[1].parameters()))


def test_lazy_modules() -> None:
    results = []
    for cls in (ADOPT, LayerwiseADOPT):
        torch.manual_seed(0)
        module = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(1))
        optimizer = cls(module.parameters(), lr=0.05, state_bits=8)
        torch.manual_seed(1)
        train(module, optimizer, 0, 4)
        results.append(module)
    assert all(map(torch.equal, results[0].parameters(), results[1].parameters()))
    loss(module, 4).backward()
    assert all(p.grad is None for p in module.parameters())
