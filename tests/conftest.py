"""For every test: nothing here depends on how fast the machine is."""

import functools
import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Threads that wait by spinning slow each other down twenty times where something else shares the cores. Before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

# Before triton: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile(
    "repo", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repo")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--default-dtype", help="torch's default dtype inside of the optimizer's calls, such as bfloat16")


def pytest_configure() -> None:
    """Skip garbage collections until the tests are collected: little of what is imported becomes garbage.

    A shell's background job ignores SIGINT, and so would each process that a test starts and interrupts.
    """
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave what has been imported out of garbage collections: the Trainer asks for one at its end, 0.5 s each time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def default_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--default-dtype`: the optimizer works under it, and the test makes its own tensors as ever."""
    name = request.config.getoption("--default-dtype")
    if name:
        from adopt_hf import ADOPT

        before, inside, lock = torch.get_default_dtype(), [0], threading.Lock()

        def enter(change: int) -> None:  # the default is the process's: the first thread sets it, the last restores it
            with lock:
                inside[0] += change
                torch.set_default_dtype(getattr(torch, name) if inside[0] else before)

        def under(method: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(method)
            def call(*args: Any, **kwargs: Any) -> Any:
                enter(1)
                try:
                    return method(*args, **kwargs)
                finally:
                    enter(-1)

            return call

        for method in ("_update", "load_state_dict", "add_param_group"):
            monkeypatch.setattr(ADOPT, method, under(getattr(ADOPT, method)))


@pytest.fixture(autouse=True)
def no_short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers that other tests threw away are no pattern of this one's."""
    from adopt_hf import first_steps

    monkeypatch.setattr(first_steps, "_short_lives", {})
