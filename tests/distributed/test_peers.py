"""Ranks that train one model and differ: an error that names both, before anything is changed, and no false alarm.

The ranks are here one process that takes their parts in turn, with one store and a process group that sends nothing.
tests/processes/test_peers.py has real ones.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import adopt_hf
from adopt_hf import ADOPT, backends
from adopt_hf.distributed import peers

As = Callable[..., Any]


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[As]:
    """`with as_rank(r): ...` runs as rank r of two. Each has its own memory of what it has compared."""
    store, times = dist.HashStore(), {0: Counter[str](), 1: Counter[str]()}

    @contextmanager
    def become(rank: int, world_size: int = 2, of: Any = store) -> Iterator[None]:
        monkeypatch.setattr(peers, "_times", times[rank])
        dist.init_process_group("fake", rank=rank, world_size=world_size, store=of)
        try:
            yield
        finally:
            dist.destroy_process_group()

    yield become
    peers._warn_of_backends.cache_clear()


def replicated(sizes: tuple[int, ...] = (2,), **options: Any) -> tuple[ADOPT, Any]:
    """An optimizer of a module in DDP, which lives as long as the second object."""
    torch.manual_seed(0)
    module = nn.ModuleList(nn.Linear(3, size) for size in sizes)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    return ADOPT([{"params": list(layer.parameters())} for layer in module], **options), DistributedDataParallel(module)


def sharded(**options: Any) -> tuple[ADOPT, Any]:
    module = nn.Linear(4, 4)
    fully_shard(module, mesh=DeviceMesh("cpu", range(2)))
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    return ADOPT(module.parameters(), **options), module


@pytest.mark.parametrize("make", [replicated, sharded])
@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ({}, {"betas": (0.9, 0.99)}, ["betas=[0.9, 0.99]", "betas=[0.9, 0.9999]"]),
        ({"lr": 0.1}, {"lr": 0.2}, ["lr=0.2", "lr=0.1"]),
        ({"lr": torch.tensor(0.5)}, {"lr": 0.25}, ["lr=0.25", "lr=0.5"]),
        ({"clip_exp": None}, {"seed": 3}, ["clip_exp=0.25, seed=3", "clip_exp=None, seed=0"]),
        ({"backend": "foreach"}, {}, ["backend='auto'", "backend='foreach'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_other_options_are_refused(
    make: Callable[..., tuple[ADOPT, Any]],
    first: dict[str, Any],
    second: dict[str, Any],
    wanted: list[str],
    as_rank: As,
) -> None:
    with as_rank(0):
        optimizer, _model = make(**first)
        optimizer.step()
    with as_rank(1):
        optimizer, _model = make(**second)
        before = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
        with pytest.raises(ValueError, match=r"^rank 1 \(on .*\) has .*, and rank 0 \(on .*\) has") as error:
            optimizer.step()
        assert not optimizer.state, "nothing has been changed"
        for group in optimizer.param_groups:
            assert all(torch.equal(p, was) for p, was in zip(group["params"], before, strict=True))
    for words in (*wanted, "in param group 0", "give all ranks the same options", "optim_args"):
        assert words in str(error.value)


def test_another_version_is_refused(as_rank: As, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = adopt_hf.__version__
    with as_rank(0):
        optimizer, _model = replicated(lr=0.1)
        optimizer.step()
    monkeypatch.setattr(adopt_hf, "__version__", "9.8")
    with as_rank(1):
        optimizer, _model = replicated(lr=0.2)
        with pytest.raises(ValueError, match=rf"rank 1 .* has adopt_hf 9\.8, and rank 0 .* has adopt_hf {ours}, but"):
            optimizer.step()


def test_other_param_groups_are_refused(as_rank: As) -> None:
    with as_rank(0):
        optimizer, _model = replicated((2, 2))
        peers._compare_options(optimizer.param_groups, (0, 1), "engine")
    with as_rank(1), pytest.raises(ValueError, match=r"the ADOPT of rank 1 .* has 1 param groups, and that of rank 0"):
        peers._compare_options(optimizer.param_groups[:1], (0, 1), "engine")


def test_ranks_that_agree_go_on(as_rank: As) -> None:
    """Also with two optimizers of one process that differ, and when a process trains again with other options."""
    for rank in (0, 1):
        with as_rank(rank):
            kept = [replicated(lr=0.1), replicated((3,), lr=0.2), replicated(lr=0.3), sharded(lr=0.4)]
            for optimizer, _model in kept if rank == 0 else reversed(kept[:2]):
                optimizer.step()
                optimizer.step()


def test_ranks_that_train_different_models_may_differ(as_rank: As) -> None:
    """A sweep that gives each rank a model of its own, an actor and its critic."""
    for rank in (0, 1):
        with as_rank(rank):
            alone = nn.Linear(3, 2)
            alone.weight.grad = torch.ones_like(alone.weight)
            ADOPT(alone.parameters(), lr=0.1 * (rank + 1)).step()
            optimizer, _model = replicated((2 + rank,), lr=0.1 * (rank + 1))
            optimizer.step()


def test_a_step_sends_nothing(as_rank: As, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two messages for the options and the backends at the first step, no collective, and nothing afterwards."""
    calls: list[str] = []
    original = peers._exchange
    monkeypatch.setattr(peers, "_exchange", lambda *args: calls.append(args[1]) or original(*args))
    for name in ("all_reduce", "all_gather", "all_gather_object", "broadcast", "barrier"):
        monkeypatch.setattr(dist, name, lambda *args, name=name, **kwargs: calls.append(name))
    with as_rank(0):
        optimizer, _model = replicated()
        for _ in range(4):
            optimizer.step()
    assert [call.split()[0] for call in calls] == ["options", "backends"]


def test_one_rank_alone_and_a_store_that_cannot_compare(as_rank: As) -> None:
    for lr in (0.1, 0.2):
        with as_rank(0, world_size=1):
            optimizer, _model = replicated(lr=lr)
            optimizer.step()
        with as_rank(1, of=FakeStore()):
            optimizer, _model = replicated(lr=lr)
            optimizer.step()


def test_a_record_of_a_process_that_has_ended_is_replaced(as_rank: As, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun keeps the store over a restart, and the first step of a restarted run has another learning rate."""
    with as_rank(0):
        optimizer, _model = replicated(lr=0.1)
        optimizer.step()
        peers._times.clear()
    with monkeypatch.context() as restarted, as_rank(1):
        restarted.setattr(peers, "_begun", time.time() + 2 * peers.CLOCKS)
        optimizer, _model = replicated(lr=0.2)
        optimizer.step()
    with as_rank(0):
        optimizer, _model = replicated(lr=0.1)
        with pytest.raises(ValueError, match=r"rank 0 \(on .*\) has lr=0\.1 .*, and rank 1 \(on .*\) has lr=0\.2"):
            optimizer.step()


def test_a_fork_begins_anew() -> None:
    begun, (reading, writing) = peers._begun, os.pipe()
    if os.fork() == 0:
        os.write(writing, b"later" if peers._begun > begun else b"as before")
        os._exit(0)
    assert os.read(reading, 20) == b"later"


def test_a_rank_without_the_fast_backend_is_warned_of(
    as_rank: As, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(backends.TABLE, "auto", (backends.REFERENCE,))
    with as_rank(0):
        optimizer, _model = replicated()
        optimizer.step()
    monkeypatch.setitem(backends.TABLE, "auto", (backends.FOREACH,))
    caplog.set_level(logging.WARNING, "adopt_hf")
    with as_rank(1):
        kept = [replicated(), replicated()]
        for optimizer, _model in kept:
            optimizer.step()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "updates with foreach operations of torch, and rank 0" in said
    assert "with the definition, tensor by tensor: their results can differ in the last bit" in said


def test_a_module_that_is_gone_is_forgotten(as_rank: As) -> None:
    with as_rank(0):
        before = len(peers._replicated)
        _optimizer, model = replicated()
        assert len(peers._replicated) == before + 1
        del _optimizer, model
        assert len(peers._replicated) <= before
