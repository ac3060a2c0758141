"""A Trainer that asks for ADOPT and trains with another optimizer says so."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import adopt_hf
from adopt_hf.integrations.transformers import others


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).square().mean()}


class MakesItsOwn(Trainer):
    """The pattern of LLaMA-Factory's trainers with `use_muon`."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate)
        return super().create_optimizer(*args, **kwargs)


def train(cls: type[Trainer], folder: Path, optim: str, make: Any = None) -> None:
    model = Linear()
    args = TrainingArguments(str(folder), optim=optim, max_steps=1, use_cpu=True, report_to="none", save_strategy="no")
    optimizers = (make(model.parameters(), lr=0.1), None) if make else (None, None)
    cls(model, args, train_dataset=[{"x": torch.ones(2)}] * 8, optimizers=optimizers).train()


@pytest.fixture(autouse=True)
def _not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "_warned", False)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "adopt_hf" and record.levelno >= 30]


@pytest.mark.parametrize(
    ("cls", "make", "name"),
    [(MakesItsOwn, None, "torch.optim.sgd.SGD"), (Trainer, torch.optim.AdamW, "torch.optim.adamw.AdamW")],
)
def test_another_optimizer_is_a_warning(
    cls: type[Trainer], make: Any, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        train(cls, tmp_path, "adopt", make)
        train(cls, tmp_path, "adopt", make)
    (message,) = warnings_of(caplog)
    assert message.startswith(f"optim='adopt' was given, and the Trainer trains with {name}: ")


@pytest.mark.parametrize(
    ("cls", "optim", "make"),
    [
        (Trainer, "adopt", None),
        (Trainer, "adopt", adopt_hf.ADOPT),
        (MakesItsOwn, "adamw_torch", None),
        (Trainer, "sgd", torch.optim.AdamW),
    ],
)
def test_what_is_asked_for_is_none(
    cls: type[Trainer], optim: str, make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        train(cls, tmp_path, optim, make)
    assert warnings_of(caplog) == []
