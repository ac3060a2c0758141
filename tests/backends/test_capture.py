"""A graph never captures a step that it could not replay: the step raises, and nothing has been launched or changed.

There is no GPU here, so what torch answers to "is a graph being captured?" is replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.backends import capture


class Launches(TorchDispatchMode):
    """The names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "profiler":  # torch marks every step for its profiler
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def every_question_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "_raises", set())


@contextmanager
def captured(kind: str = "cuda", initialised: bool = True) -> Iterator[Launches]:
    """As on a machine with an accelerator of that kind, while a graph is being captured."""
    with pytest.MonkeyPatch.context() as patch, Launches() as launches:
        if initialised:
            patch.setattr(getattr(torch, kind), "is_initialized", lambda: True)
        else:
            patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
        patch.setattr(getattr(torch, kind), "is_current_stream_capturing", lambda: True, raising=False)
        yield launches


def parameter() -> Tensor:
    return torch.nn.Parameter(torch.ones(3))


def stepped(optimizer: torch.optim.Optimizer, p: Tensor, times: int = 2) -> None:
    for _ in range(times):
        p.sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("options", [{}, {"backend": "reference"}, {"state_bits": 16}, {"backend": "foreach"}], ids=str)
def test_a_capture_without_capturable_is_refused(kind: str, steps: int, options: dict[str, Any]) -> None:
    p = parameter()
    optimizer = ADOPT([p], **options)
    stepped(optimizer, p, steps)
    p.grad = torch.ones(3)
    before = p.detach().clone()
    with captured(kind) as launches, pytest.raises(RuntimeError, match=r"capturable=False.*ADOPT\(.*capturable=True"):
        optimizer.step()
    assert launches.names == []
    assert torch.equal(p, before)
    optimizer.step()  # outside it goes on


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_accelerator_is_asked_where_torch_says_that_it_is_not_initialised(kind: str) -> None:
    with captured(kind, initialised=False), pytest.raises(RuntimeError, match="capturable=False"):
        ADOPT([parameter()]).step()


def test_one_group_is_enough() -> None:
    p, q = parameter(), parameter()
    optimizer = ADOPT([{"params": [p], "capturable": True}, {"params": [q]}])
    with captured(), pytest.raises(RuntimeError, match="param group 1 has capturable=False"):
        optimizer.step()


@pytest.mark.parametrize("make", [ADOPT, LayerwiseADOPT])
def test_the_closure_is_not_called(make: type[ADOPT]) -> None:
    def closure() -> float:
        raise AssertionError("called")

    with captured(), pytest.raises(RuntimeError, match="capturable=False"):
        make([parameter()]).step(closure)


def test_a_layerwise_step_is_refused_in_backward() -> None:
    p = parameter()
    optimizer = LayerwiseADOPT([p])
    stepped(optimizer, p)
    before = p.detach().clone()
    loss = p.sum()
    with captured(), pytest.raises(RuntimeError, match="capturable=False"):
        loss.backward()
    assert torch.equal(p, before)


def test_a_step_that_would_create_state_is_refused() -> None:
    """A replay would set the new moments to zero each time."""
    p, late = parameter(), parameter()
    optimizer = ADOPT([p, late], capturable=True)
    stepped(optimizer, p)
    late.grad = torch.ones(3)
    with captured() as launches, pytest.raises(RuntimeError, match=r"shape \(3,\) has no state.*Run a few steps"):
        optimizer.step()
    assert launches.names == []
    assert late not in optimizer.state


@pytest.mark.parametrize("make", [ADOPT, LayerwiseADOPT])
def test_a_capturable_step_is_captured(make: type[ADOPT]) -> None:
    p = parameter()
    optimizer = make([p], capturable=True)
    stepped(optimizer, p)
    with captured() as launches:
        stepped(optimizer, p, 1)
    assert launches.names != []
    assert optimizer.state[p]["step"] == 3


def test_looking_does_not_initialise_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on any machine: a process that did could not be forked."""

    def fail() -> None:
        raise AssertionError("initialised")

    monkeypatch.setattr(torch.cuda, "_lazy_init", fail)
    p = parameter()
    stepped(ADOPT([p], capturable=True), p)


def raises() -> bool:
    raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version")


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_build_for_gpus_without_a_driver_takes_steps(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheels of PyPI on a machine without a GPU: whatever is asked of CUDA there raises."""
    monkeypatch.setattr(getattr(torch, kind), "is_current_stream_capturing", raises, raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", raises)  # torch 2.6
    assert not capture.is_capturing()
    p = parameter()
    stepped(ADOPT([p]), p)
