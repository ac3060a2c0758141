"""The observer of `adopt-hf compare` in real trainings: what it writes, and what it refuses before a step is made."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments, trainer

from adopt_hf.integrations.transformers import observer, registration

DATA = [{"x": torch.ones(2) * i, "labels": torch.tensor(float(i))} for i in range(8)]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.linear(x)[:, 0] - labels).square().mean()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run, in a process that belongs to it."""
    pipe = tmp_path / "alive"
    asked = {"optim": "adopt", "learning_rate": 1e-2, "seed": 3, "output_dir": str(tmp_path / "run" / "output")}
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "asked-1.json"
    file.write_text(json.dumps({**asked, "alive": str(pipe)}))
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    monkeypatch.setenv(observer.VARIABLE, str(file))
    monkeypatch.setattr(observer, "_end_with", lambda *_: None)
    observer.add()
    yield file.parent
    observer.remove()
    os.close(writer)


def train(folder: Path, optimizers: Any = (None, None), **changes: Any) -> Trainer:
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "output"), "optim": "adopt", "learning_rate": 1e-2, "seed": 3, "max_steps": 4,
        "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    args = TrainingArguments(**{**arguments, **changes})
    model = Model()
    made = optimizers(model) if callable(optimizers) else optimizers
    found = Trainer(model, args, train_dataset=DATA, optimizers=made)
    found.train()
    return found


def seen(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"seen-{os.getpid()}.json").read_text())
    return found


def test_what_a_training_has_used(folder: Path) -> None:
    train(folder)
    found = seen(folder)
    assert (found["optim"], found["optimizer"], found["learning_rate"], found["seed"]) == ("adopt", "ADOPTW", 1e-2, 3)
    assert (found["step"], found["max_steps"], found["is_first"]) == (4, 4, True)
    assert 0 < found["step_ms"] < 10_000
    assert 2**26 < found["peak_bytes"] < 2**40
    assert found["peak_of"] == "host"
    state = json.loads((folder / observer.STATE).read_text())
    assert state["global_step"] == 4
    assert len([entry for entry in state["log_history"] if "loss" in entry]) == 4


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"optim": "sgd"}, "optim", "sgd"),
        ({"learning_rate": 2e-2}, "learning_rate", "0.02"),
        ({"seed": 4}, "seed", "4"),
    ],
)
def test_other_values_are_refused_before_the_first_step(
    changes: dict[str, Any], name: str, value: str, folder: Path
) -> None:
    with pytest.raises(observer.NotComparableError, match=f"asked for --{name} .*, and the script trains with {value}"):
        train(folder, **changes)
    assert seen(folder)["refused"] == [name, value]
    assert seen(folder).get("step", 0) == 0


def test_an_optimizer_of_the_scripts_own_is_refused_after_its_first_step(folder: Path) -> None:
    """The arguments say ADOPT, and another optimizer steps."""
    with pytest.raises(observer.NotComparableError, match=r"trains with an optimizer SGD of the script's own"):
        train(folder, lambda model: (torch.optim.SGD(model.parameters(), 1e-2), None))
    assert seen(folder)["refused"] == ["optim", "an optimizer SGD of the script's own"]


def test_another_output_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused in the process that was given ours. In another one it is a training of the command's own."""
    train(folder, output_dir=str(folder.parent / "elsewhere"), optim="sgd")
    assert "optim" not in seen(folder)
    monkeypatch.setattr(observer.sys, "argv", ["train.py", "--output_dir", str(folder / "output")])
    with pytest.raises(observer.NotComparableError, match="asked for --output_dir"):
        train(folder, output_dir=str(folder.parent / "elsewhere"))
    train(folder, output_dir=str(folder / "output" / "below"))
    assert seen(folder)["optimizer"] == "ADOPTW"


def test_trainers_are_as_before_without_it(folder: Path) -> None:
    assert sum(hasattr(one, "adopt_hf_observes") for one in trainer.DEFAULT_CALLBACKS) == 1
    observer.add()
    assert sum(hasattr(one, "adopt_hf_observes") for one in trainer.DEFAULT_CALLBACKS) == 1
    registration.unregister()
    try:
        assert not any(hasattr(one, "adopt_hf_observes") for one in trainer.DEFAULT_CALLBACKS)
    finally:
        registration.register()


def test_deepspeeds_adam_stands_for_torchs() -> None:
    ours = type("DeepSpeedCPUAdam", (), {"__module__": "deepspeed.ops.adam.cpu_adam"})
    assert observer._is_deepspeeds(ours, torch.optim.AdamW)
    assert not observer._is_deepspeeds(ours, torch.optim.SGD)
    assert not observer._is_deepspeeds(torch.optim.Adam, torch.optim.AdamW)


def test_a_transformers_without_the_list_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trainer, "DEFAULT_CALLBACKS")
    observer.remove()
    with pytest.raises(observer.NotComparableError, match=r"has no transformers\.trainer\.DEFAULT_CALLBACKS"):
        observer.add()
