"""DeepSpeed's OneCycle, which is written for Adam, leaves the betas of an ADOPT as they are."""

import logging
from typing import Any

import pytest
import torch
from deepspeed.runtime.lr_schedules import OneCycle

from adopt_hf import ADOPT
from adopt_hf.integrations.deepspeed import adam

CYCLE: dict[str, Any] = {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3, "cycle_first_step_size": 3, "decay_step_size": 2}


@pytest.fixture
def optimizer() -> ADOPT:
    adam._warn_of_betas.cache_clear()
    return ADOPT([torch.nn.Parameter(torch.zeros(2))], betas=(0.9, 0.9999))


def betas_in(schedule: OneCycle, optimizer: torch.optim.Optimizer) -> set[tuple[float, float]]:
    seen = set()
    for _ in range(20):
        seen.add(tuple(optimizer.param_groups[0]["betas"]))
        schedule.step()
    return seen


def test_one_cycle_leaves_the_betas_and_says_so_once(optimizer: ADOPT, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        schedules = [OneCycle(optimizer, **CYCLE, decay_mom_rate=0.1) for _ in range(2)]
    assert betas_in(schedules[0], optimizer) == {(0.9, 0.9999)}
    assert [record.message.count("cycle_momentum=False") for record in caplog.records] == [1]
    assert optimizer.param_groups[0]["lr"] != 1e-3  # it is cycled


def test_one_cycle_without_momentum_says_nothing(optimizer: ADOPT, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        schedule = OneCycle(optimizer, **CYCLE, cycle_momentum=False)
    assert betas_in(schedule, optimizer) == {(0.9, 0.9999)}
    assert not [record for record in caplog.records if record.name == "adopt_hf"]


def test_one_cycle_that_is_to_cycle_momentum_is_refused(optimizer: ADOPT) -> None:
    class Wrapper:
        def __init__(self, optimizer: ADOPT):
            self.optimizer = optimizer

    for given in (optimizer, Wrapper(optimizer)):
        with pytest.raises(ValueError, match=r'ADOPT.*beta2 to 0.99.*"cycle_momentum": false'):
            OneCycle(given, **CYCLE, cycle_momentum=True)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.9999)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_one_cycle_of_adam_is_as_ever() -> None:
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    assert {beta2 for _, beta2 in betas_in(OneCycle(adam, **CYCLE), adam)} == {0.99}
