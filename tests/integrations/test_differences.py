"""After a load, what is said is what runs: a warning names the numbers that differ from those before, and no other."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.integrations.deepspeed import checkpoints
from adopt_hf.state import differences

OTHER: dict[str, Any] = {
    "lr": 0.5,
    "betas": (0.8, 0.99),
    "eps": 1e-3,
    "weight_decay": 0.3,
    "decouple": True,
    "clip_exp": None,
    "beta2_warmup": 0.5,
    "maximize": True,
    "seed": 7,
}
KEPT = {"backend": "reference", "state_bits": 16, "bf16_stochastic_round": True}  # a load keeps these as they are


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "_told", set())


def make(cls: Any = ADOPT, groups: int = 1, **options: Any) -> Any:
    return cls([{"params": [nn.Parameter(torch.ones(3))]} for _ in range(groups)], **options)


def stepped(optimizer: Any) -> Any:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones(3)
    optimizer.step()
    return optimizer


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert {record.levelname for record in caplog.records} <= {"WARNING"}
    assert {record.name for record in caplog.records} <= {"adopt_hf"}
    return [record.getMessage() for record in caplog.records]


def test_all_that_changes_the_update_is_compared() -> None:
    group = make().param_groups[0]
    assert set(differences.NAMES) == set(OTHER) == group.keys() - KEPT.keys() - {"params", "capturable", "block_size"}


@pytest.mark.parametrize("cls", [ADOPT, LayerwiseADOPT])
@pytest.mark.parametrize("name", OTHER)
def test_one_that_differs(name: str, cls: Any, caplog: pytest.LogCaptureFixture) -> None:
    saved, optimizer = stepped(make()), make(cls, **{name: OTHER[name]})
    optimizer.load_state_dict(saved.state_dict())
    (message,) = said(caplog)
    ours, theirs = saved.param_groups[0][name], OTHER[name]
    assert f"{name}={ours} (and not {theirs}) in param group 0. " in message
    assert message.count(" (and not ") == 1
    assert optimizer.param_groups[0][name] == ours  # as is said


def test_each_group_is_named(caplog: pytest.LogCaptureFixture) -> None:
    saved, optimizer = stepped(make(groups=3)), make(groups=3, weight_decay=0.3)
    optimizer.param_groups[1]["eps"] = 0.5
    optimizer.load_state_dict(saved.state_dict())
    (message,) = said(caplog)
    assert "weight_decay=0.0 (and not 0.3) in param groups 0, 2; " in message
    assert "eps=1e-06 (and not 0.5), weight_decay=0.0 (and not 0.3) in param group 1. " in message


@pytest.mark.parametrize("options", [{}, KEPT, {"lr": torch.tensor(1e-3, dtype=torch.float64)}], ids=str)
def test_nothing_is_said_where_nothing_differs(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    make(**options).load_state_dict(stepped(make()).state_dict())
    optimizer = make(betas=[0.9, 0.9999])
    optimizer.load_state_dict(optimizer.state_dict())
    Accelerator(cpu=True).prepare(stepped(make(**OTHER)))  # loads an optimizer's own state
    assert said(caplog) == []


@pytest.mark.parametrize("schedule", ["StepLR", "OneCycleLR"])
def test_what_a_schedule_writes_is_no_difference(schedule: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"StepLR": {"step_size": 1}, "OneCycleLR": {"max_lr": 1e-2, "total_steps": 9}}[schedule]
    optimizers = [make(), make()]
    schedules = [getattr(torch.optim.lr_scheduler, schedule)(optimizer, **options) for optimizer in optimizers]
    for _ in range(3):
        stepped(optimizers[0])
        schedules[0].step()
    assert optimizers[0].param_groups[0]["lr"] != optimizers[1].param_groups[0]["lr"]
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert said(caplog) == []


def test_the_start_of_a_schedule_is_one(caplog: pytest.LogCaptureFixture) -> None:
    saved, optimizer = make(lr=1.0), make(lr=2.0)
    for each in (saved, optimizer):
        torch.optim.lr_scheduler.StepLR(each, step_size=1)
    optimizer.load_state_dict(stepped(saved).state_dict())
    (message,) = said(caplog)
    assert "lr=1.0 (and not 2.0) in param group 0. " in message
    assert message.endswith("; a schedule that is not loaded as well goes on with its own lr")


def test_once_a_process(caplog: pytest.LogCaptureFixture) -> None:
    state = stepped(make()).state_dict()
    for eps in (0.1, 0.1, 0.2):
        make(eps=eps).load_state_dict(state)
    assert [message.count("eps=1e-06 (and not 0.1)") for message in said(caplog)] == [1, 0]


def test_nothing_is_said_where_nothing_is_loaded(caplog: pytest.LogCaptureFixture) -> None:
    optimizer = make(eps=0.1)
    with pytest.raises(ValueError, match="ADOPT"):
        optimizer.load_state_dict({"state": {}, "param_groups": [{"params": [0]}]})
    assert said(caplog) == []


def test_accelerates_load_state(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    for eps in (1e-6, 0.1):
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(nn.Linear(2, 2), make(eps=eps))
        if eps == 0.1:
            accelerator.load_state(str(tmp_path))
        else:
            accelerator.save_state(str(tmp_path))
    assert ["eps=1e-06 (and not 0.1)" in message for message in said(caplog)] == [True]


def test_deepspeeds_load_checkpoint(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine writes into the groups by itself; here by a stand-in, in several processes in tests/processes."""

    class Engine:
        basic_optimizer = make(eps=0.1)
        adopt_arrivals = type("Arrivals", (), {"forget": lambda self: None})()

        def zero_nvme_offload_optimizer(self) -> bool:
            return False

        def load_universal_checkpoint(self) -> bool:
            return False

        def load_checkpoint(self, load_dir: str) -> tuple[str, dict[str, Any]]:
            self.basic_optimizer.param_groups[0]["eps"] = 1e-6
            return load_dir, {}

    monkeypatch.setattr(checkpoints, "saved_groups", lambda *args: [])
    assert checkpoints.load_checkpoint(Engine.load_checkpoint, Engine(), "here") == ("here", {})
    assert ["eps=1e-06 (and not 0.1)" in message for message in said(caplog)] == [True]


def test_the_trainer(arguments: Any, make_trainer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The INFO line about the run's numbers comes before the checkpoint is read."""
    make_trainer(arguments(save_strategy="steps", save_steps=2, max_steps=2)).train()
    assert [record for record in caplog.records if record.levelname == "WARNING" and record.name == "adopt_hf"] == []
    changed = arguments(max_steps=3, optim_args="beta2=0.99, clip_exp=none", weight_decay=0.1, learning_rate=0.5)
    trainer = make_trainer(changed)
    trainer.train(resume_from_checkpoint=f"{changed.output_dir}/checkpoint-2")
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name == "adopt_hf"]
    assert "lr=0.01 (and not 0.5)" in message
    assert "betas=(0.9, 0.9999) (and not (0.9, 0.99)), weight_decay=0.0 (and not 0.1)" in message
    assert "clip_exp=0.25 (and not None)" in message
    assert trainer.optimizer.param_groups[0]["betas"] == (0.9, 0.9999)
    assert trainer.lr_scheduler.base_lrs == [0.01, 0.01]
