"""The monitor in a real Trainer: by `optim_args` or as a callback, in the logs and in the files of trackers."""

import gc
import json
import os
import sqlite3
import struct
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import adopt_hf
from adopt_hf.integrations.transformers import TRAINER, patches

ROOT = Path(__file__).parents[3]
TRACKERS = Path(sys.prefix) / "trackers"  # of the Makefile
FIGURES = ("clipped", "update_to_weight", "rms_sqrt_v", "unobserved", "nonfinite_v")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.head(self.body(x)) - labels).square().mean()}


def trainer(folder: Path, callbacks: Any = (), optimizers: Any = (None, None), **arguments: Any) -> Trainer:
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"x": torch.randn(4, generator=generator), "labels": torch.randn(1, generator=generator)} for _ in range(64)
    ]
    defaults = {"optim": "adopt", "max_steps": 6, "logging_steps": 2, "report_to": "none", "learning_rate": 1e-2}
    args = TrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **(defaults | arguments))
    return Trainer(Model(), args, train_dataset=rows, callbacks=list(callbacks), optimizers=optimizers)


def logged(t: Trainer) -> dict[int, dict[str, float]]:
    """Train, and return the figures by step."""
    t.train()
    return {
        entry["step"]: {name: x for name, x in entry.items() if name.startswith("adopt/")}
        for entry in t.state.log_history
        if "loss" in entry
    }


def by_hand(steps: int) -> dict[str, float]:
    """Return the figures of a step of the same training, from a Monitor that is asked in each."""
    found: dict[int, dict[str, float]] = {}

    class Each(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.monitor = adopt_hf.Monitor(kwargs["optimizer"], kwargs["model"], every=1)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            found[state.global_step] = self.monitor.figures()

    trainer(Path("run"), [Each()], max_steps=steps, save_strategy="no", lr_scheduler_type="constant").train()
    return found[steps]


@pytest.mark.parametrize("door", ["optim_args", "callback"])
def test_the_logs_have_the_figures_of_the_logged_step(door: str, tmp_path: Path) -> None:
    asked: Any = {"optim_args": "monitor=true"} if door == "optim_args" else {"callbacks": [adopt_hf.AdoptMonitor()]}
    found = logged(trainer(tmp_path, **asked, lr_scheduler_type="constant"))
    assert list(found) == [2, 4, 6]
    assert found[4] == by_hand(4)
    assert {f"adopt/{name}" for name in FIGURES} < found[6].keys()
    assert {"adopt/clipped/body", "adopt/clipped/head", "adopt/group_1/clipped"} < found[6].keys()


def test_only_the_logged_steps_are_observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    original = adopt_hf.Monitor._look
    monkeypatch.setattr(adopt_hf.Monitor, "_look", lambda self, *a, **k: looked.append(1) or original(self, *a, **k))
    t = trainer(tmp_path, optim_args="monitor=true", gradient_accumulation_steps=2, logging_first_step=True)
    found = logged(t)
    assert list(found) == [1, 2, 4, 6]
    assert len(looked) == 4
    assert t.optimizer.optimizer.monitor is None  # the training is over


@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_other_intervals(strategy: str, tmp_path: Path) -> None:
    found = logged(
        trainer(
            tmp_path,
            optim_args="monitor=true",
            logging_strategy=strategy,
            max_steps=-1,
            num_train_epochs=2,
            per_device_train_batch_size=1,
        )
    )
    assert [bool(figures) for figures in found.values()] == ([True, True] if strategy == "epoch" else [])


def test_nobody_asks_and_nothing_is_added(tmp_path: Path) -> None:
    assert all(figures == {} for figures in logged(trainer(tmp_path, optim_args="monitor=false")).values())


def test_a_run_that_is_resumed_goes_on_with_its_figures(tmp_path: Path) -> None:
    arguments: Any = {"optim_args": "monitor=true", "save_steps": 4}
    whole = logged(trainer(tmp_path / "whole", **arguments))
    trainer(tmp_path / "cut", **arguments).train()
    again = trainer(tmp_path / "again", **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    last = [entry for entry in again.state.log_history if entry.get("step") == 6 and "loss" in entry][-1]
    assert {name: last[name] for name in whole[6]} == whole[6]


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="AdoptMonitor observes ADOPT, and the Trainer trains with AdamW"):
        trainer(tmp_path, [adopt_hf.AdoptMonitor()], optim="adamw_torch").train()


def test_each_training_asks_for_its_own_monitor(tmp_path: Path) -> None:
    """As the trials of a hyperparameter search do, which set the fields of one TrainingArguments."""
    t = trainer(tmp_path, optim_args="monitor=true", save_strategy="no")
    seen = []
    for optim, text in (("adopt", "monitor=true"), ("adopt", None), ("adamw_torch", None), ("adopt", "monitor=true")):
        t.args.optim, t.args.optim_args = optim, text
        t.optimizer = t.lr_scheduler = None
        seen.append(bool(logged(t)[6]))
    assert seen == [True, False, False, True]
    assert sum(isinstance(callback, adopt_hf.AdoptMonitor) for callback in t.callback_handler.callbacks) == 1


def test_a_callback_of_ones_own_stays_for_all_trainings(tmp_path: Path) -> None:
    t = trainer(tmp_path, [adopt_hf.AdoptMonitor()], optim_args="monitor=true", save_strategy="no")
    assert logged(t)[6]
    t.args.optim_args = None
    assert logged(t)[6]


def test_the_callback_keeps_no_optimizer_in_memory(tmp_path: Path) -> None:
    callback = adopt_hf.AdoptMonitor()
    t = trainer(tmp_path, [callback], save_strategy="no")
    t.train()
    optimizer = weakref.ref(t.optimizer.optimizer)
    t.optimizer = t.lr_scheduler = t.callback_handler.optimizer = t.callback_handler.lr_scheduler = None
    t.accelerator.free_memory()
    gc.collect()
    assert optimizer() is None


def test_an_adopt_of_ones_own_is_observed(tmp_path: Path) -> None:
    model = Model()
    optimizer = adopt_hf.ADOPT(model.named_parameters())
    t = trainer(tmp_path, [adopt_hf.AdoptMonitor()], (optimizer, None))
    t.model = t.model_wrapped = model
    assert logged(t)[2]["adopt/rms_sqrt_v"] > 0


def test_layerwise_and_eight_bits(tmp_path: Path) -> None:
    for optim in ("adopt_layerwise", "adopt_8bit"):
        found = logged(trainer(tmp_path, optim=optim, optim_args="monitor=true", max_grad_norm=0))
        assert found[6]["adopt/update_to_weight"] > 0


def test_a_changed_handler_is_an_error_where_optim_args_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class CallbackHandler:
        def on_train_begin(self, changed: Any) -> None: ...

    module = sys.modules[TRAINER]
    args = trainer(tmp_path, optim_args="monitor=true").args
    monkeypatch.setattr(module, "CallbackHandler", CallbackHandler)
    with pytest.raises(ImportError, match=r"monitor=true needs adopt_hf's patch of `CallbackHandler.on_train_begin`"):
        adopt_hf.trainer_kwargs(args)
    assert patches.module_mismatch(TRAINER) is None  # ADOPT itself can be used


TRACKED = """
import sys
from collections.abc import Iterator
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_monitor import logged, trainer
found = logged(trainer(Path("run"), report_to={tracker!r}, optim_args="monitor=true", run_name="run"))
import json
Path("found.json").write_text(json.dumps(found))
"""


def tracked(tracker: str, folder: Path) -> dict[str, dict[str, float]]:
    """Train in a process of its own, and return the figures of the log."""
    script = folder / "script.py"
    script.write_text(TRACKED.format(tracker=tracker, tests=str(Path(__file__).parent)))
    path = os.pathsep.join([str(ROOT), str(TRACKERS)])
    environment = {
        "PYTHONPATH": path,
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "TRACKIO_DIR": str(folder / "trackio"),
        "TENSORBOARD_LOGGING_DIR": str(folder / "logs"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, dict[str, float]] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.slow
def test_tensorboard_has_them(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = tracked("tensorboard", tmp_path)
    (file,) = (tmp_path / "logs").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    for step, figures in found.items():
        for name, value in figures.items():
            (event,) = [e for e in events.Scalars(f"train/{name}") if e.step == int(step)]
            assert event.value == pytest.approx(value, rel=1e-6)


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: LevelDB's log format, behind a header of seven bytes."""
    block, header, position, record = 32768, 7, 7, b""
    while position + header < len(data):
        if block - position % block < header:
            position += block - position % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + header : position + header + length]
        position += header + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_has_them(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    from wandb.proto import wandb_internal_pb2

    found = tracked("wandb", tmp_path)
    (file,) = tmp_path.rglob("*.wandb")
    rows: dict[int, dict[str, float]] = {}
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if items:
            rows.setdefault(items["train/global_step"], {}).update(items)
    for step, figures in found.items():
        for name, value in figures.items():
            assert rows[int(step)][f"train/{name}"] == pytest.approx(value, rel=1e-6)


@pytest.mark.slow
def test_trackio_has_them(tmp_path: Path) -> None:
    if not (TRACKERS / "trackio").is_dir():
        pytest.skip("trackio is not in the folder trackers of the virtual environment: make installs it there")
    found = tracked("trackio", tmp_path)
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(text) for (text,) in database.execute("select metrics from metrics")]
    for figures in found.values():
        wanted = {f"train/{name}": value for name, value in figures.items()}
        assert any(wanted.items() <= row.items() for row in rows)
