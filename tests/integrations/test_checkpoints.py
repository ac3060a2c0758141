"""Complete checkpoints and what is left of others.

- every file that is removed, cut off or longer makes a checkpoint incomplete, and is named;
- the newest complete one is found, and what was passed over is said;
- old ones go only when newer ones are complete, and half removed they do not count;
- a checkpoint that will be written again does not count before it is;
- the Trainer's own checkpoints get their mark, and no other folder does.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.integrations import checkpoints
from adopt_hf.integrations.checkpoints import (
    MARK,
    AlreadyFinishedError,
    DiskFullError,
    MarkComplete,
    after_interrupt,
    check_writable,
    last_complete,
    mark,
    missing,
    names_a_full_disk,
)

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 9,
    "latest": b"",
    "global_step2/mp_rank_00_model_states.pt": b"model",
    "global_step2/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": b"optimizer",
}


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    Accelerator(cpu=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def write(folder: Path, step: int, finished: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    for name, content in FILES.items():
        path = checkpoint / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if finished:
        mark(checkpoint, step)
    return checkpoint


def test_a_marked_checkpoint_is_complete(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 20)
    assert missing(checkpoint) is None
    assert json.loads((checkpoint / MARK).read_text()) == {
        "step": 20,
        "layout": "whole",
        "files": {name: len(content) for name, content in sorted(FILES.items())},
    }
    (checkpoint / "notes.txt").write_text("the user's own")
    assert missing(checkpoint) is None
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    assert missing(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_missed(name: str, tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 20)
    (checkpoint / name).unlink()
    assert missing(checkpoint) == f"no {name}"


@pytest.mark.parametrize(("name", "change"), [(name, n) for name in FILES for n in (-1, 1) if FILES[name] or n > 0])
def test_every_size_is_held(name: str, change: int, tmp_path: Path) -> None:
    checkpoint, size = write(tmp_path, 20), len(FILES[name])
    with open(checkpoint / name, "r+b") as file:
        file.truncate(size + change)
    assert missing(checkpoint) == f"{name} has {size + change} of {size} bytes"


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 20)
    shutil.rmtree(checkpoint / "global_step2")
    assert missing(checkpoint) == "no global_step2/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.mark.parametrize("text", ["", '{"step": 20, "fi', "[]", "{}", '{"step": 20, "files": 3}', '{"step": null}'])
def test_a_mark_that_is_none(text: str, tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 20)
    (checkpoint / MARK).write_text(text)
    assert missing(checkpoint) == f"{MARK} cannot be read"


def test_unfinished_empty_and_absent(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (write(tmp_path, 20, finished=False), tmp_path / "empty", tmp_path / "absent"):
        assert missing(folder) == f"no {MARK}, saving it was not finished"


def test_the_mark_of_an_older_step(tmp_path: Path) -> None:
    older, newer = write(tmp_path, 10), write(tmp_path, 20, finished=False)
    shutil.copy(older / MARK, newer / MARK)
    assert missing(newer) == f"{MARK} is that of step 10"


def test_marking_again_leaves_out_what_marking_left(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 20)
    (checkpoint / f"{MARK}.unfinished").write_text('{"step"')
    mark(checkpoint, 20)
    assert sorted(json.loads((checkpoint / MARK).read_text())["files"]) == sorted(FILES)
    assert missing(checkpoint) is None


def test_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command goes on with the same run, whatever it was started with."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    run = tmp_path / "a run"
    argv = ["x/train.py", "--lr", "1", "--resume_from_checkpoint", "here", "--output_dir", str(run), "--n", "2"]
    assert after_interrupt(argv, run) == "train.py: stopped before a first checkpoint was complete; start again"
    write(run, 3, finished=False)
    assert after_interrupt(argv, run).endswith(f"start again, in another --output_dir or after removing {run}")
    mark(run / "checkpoint-3", 3)
    line = f"train.py: stopped; go on from checkpoint-3 with: python x/train.py --lr 1 --output_dir '{run}' --n 2"
    assert after_interrupt(argv, run) == f"{line} --resume_from_checkpoint last"
    argv = ["train.py", "--resume_from_checkpoint=last"]
    expected = f"with: python train.py --output_dir '{run}' --resume_from_checkpoint last"
    assert after_interrupt(argv, run).endswith(expected)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "with: YOUR LAUNCHER train.py" in after_interrupt(argv, run)


@pytest.mark.parametrize("where", ["file", "file/x", "/proc/x/y"])
def test_a_folder_that_cannot_be_written(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"\Aoutput_dir .* cannot be written: \w+"):
        check_writable(tmp_path / where)


def test_a_folder_that_can_be_written_is_not_made(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


def test_the_last_complete_one(tmp_path: Path) -> None:
    assert last_complete(tmp_path) == (None, [])
    ten = write(tmp_path, 10, finished=False)
    assert last_complete(tmp_path) == (None, [(ten, f"no {MARK}, saving it was not finished")])
    nine = write(tmp_path, 9)
    hundred = write(tmp_path, 100)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-200").write_text("a file")
    assert last_complete(tmp_path) == (hundred, [])
    (hundred / "latest").unlink()
    assert last_complete(tmp_path) == (
        nine,
        [(hundred, "no latest"), (ten, f"no {MARK}, saving it was not finished")],
    )


def test_rotation_counts_complete_ones(tmp_path: Path) -> None:
    for step in (1, 2, 4, 5):
        write(tmp_path, step)
    for step in (3, 6):
        write(tmp_path, step, finished=False)
    checkpoints.rotate(tmp_path, None)
    checkpoints.rotate(tmp_path, 0)
    checkpoints.rotate(tmp_path, 4)
    assert len(checkpoints.checkpoints_in(tmp_path)) == 6
    checkpoints.rotate(tmp_path, 2, keep=[tmp_path / "checkpoint-1"])
    assert [p.name for p in checkpoints.checkpoints_in(tmp_path)] == [f"checkpoint-{n}" for n in (1, 4, 5, 6)]
    checkpoints.rotate(tmp_path, 1)
    assert [p.name for p in checkpoints.checkpoints_in(tmp_path)] == ["checkpoint-5", "checkpoint-6"]


def test_what_is_half_removed_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    old, new = write(tmp_path, 10), write(tmp_path, 20)
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.rotate(tmp_path, 1)
    assert missing(old) == f"no {MARK}, saving it was not finished"
    assert missing(new) is None


def test_later_checkpoints_do_not_count_for_a_run_that_goes_back(tmp_path: Path) -> None:
    ten, twenty, thirty = (write(tmp_path, step) for step in (10, 20, 30))
    checkpoints.forget_later(tmp_path, 20)
    assert [missing(p) is None for p in (ten, twenty, thirty)] == [True, True, False]
    assert last_complete(tmp_path)[0] == twenty


# ----- with the Trainer -----


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (x * self.weight).sum()}


class Killed(TrainerCallback):
    """Stops the run where the Trainer has written all files of a checkpoint, before it is marked."""

    def __init__(self, step: int):
        self.step = step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def trainer(folder: Path, *callbacks: TrainerCallback, **more: object) -> Trainer:
    args = TrainingArguments(
        **{
            "output_dir": str(folder),
            "optim": "adamw_torch",
            "max_steps": 6,
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **more,
        }
    )
    return Trainer(Line(), args, train_dataset=[{"x": torch.ones(3)}] * 8, callbacks=list(callbacks))


def states(folder: Path) -> dict[str, bool]:
    return {p.name: missing(p) is None for p in checkpoints.checkpoints_in(folder)}


def test_the_trainers_checkpoints_are_marked(tmp_path: Path) -> None:
    trainer(tmp_path, MarkComplete()).train()
    assert states(tmp_path) == {"checkpoint-2": True, "checkpoint-4": True, "checkpoint-6": True}
    found = json.loads((tmp_path / "checkpoint-4" / MARK).read_text())
    assert (found["step"], found["layout"]) == (4, "whole")
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= found["files"].keys()
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    assert last_complete(tmp_path) == (tmp_path / "checkpoint-4", [(tmp_path / "checkpoint-6", "no optimizer.pt")])


def test_old_ones_go_when_the_new_one_is_complete(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Killed(4), MarkComplete(save_total_limit=1)).train()
    assert states(tmp_path) == {"checkpoint-2": True, "checkpoint-4": False}
    trainer(tmp_path, MarkComplete(save_total_limit=1)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert states(tmp_path) == {"checkpoint-6": True}


def test_going_back_to_an_older_one(tmp_path: Path) -> None:
    trainer(tmp_path, MarkComplete()).train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Killed(4), MarkComplete()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert states(tmp_path) == {"checkpoint-2": True, "checkpoint-4": False, "checkpoint-6": False}


def test_without_the_optimizer_it_is_no_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path, MarkComplete(), save_only_model=True).train()
    assert states(tmp_path) == {"checkpoint-2": False, "checkpoint-4": False, "checkpoint-6": False}


# -- a finished run, another optimizer, a full disk --------------------------------------------------------------------


def test_a_finished_run_does_no_step_more(tmp_path: Path) -> None:
    trainer(tmp_path, MarkComplete()).train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = trainer(tmp_path, MarkComplete())
    with pytest.raises(AlreadyFinishedError, match=r"finished already: .* has done 6 of 6 steps"):
        again.train(resume_from_checkpoint=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert torch.equal(again.model.weight, saved["weight"])  # it is loaded, for what a script does next
    more = trainer(tmp_path, MarkComplete(), max_steps=7)
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 7


@pytest.mark.parametrize(
    ("fields", "finished"),
    [
        ({"max_steps": 6}, True),
        ({"max_steps": 5}, True),
        ({"max_steps": 7}, False),
        ({"max_steps": -1, "num_train_epochs": 6}, True),
        ({"max_steps": -1, "num_train_epochs": 6.5}, False),
    ],
    ids=str,
)
def test_which_runs_are_finished(fields: dict[str, float], finished: bool, tmp_path: Path) -> None:
    trainer(tmp_path, MarkComplete()).train()
    args = trainer(tmp_path, **fields).args
    assert checkpoints.is_finished(tmp_path / "checkpoint-6", args) == finished


def test_what_counts_as_saved(tmp_path: Path) -> None:
    run = trainer(tmp_path, MarkComplete())
    run.train()
    last, end = tmp_path / "checkpoint-6", tmp_path / "loss.png"
    assert not checkpoints.is_saved(tmp_path, last, end.name)
    run.save_state()
    assert not checkpoints.is_saved(tmp_path, last, end.name)
    end.touch()
    assert checkpoints.is_saved(tmp_path, last, end.name)
    assert not checkpoints.is_saved(tmp_path, tmp_path / "checkpoint-4", end.name)
    os.utime(end, ns=(0, 0))  # of a run before this one
    assert not checkpoints.is_saved(tmp_path, last, end.name)


@pytest.mark.parametrize(("saved", "other"), [("adopt", torch.optim.AdamW), ("adamw_torch", ADOPT)])
def test_the_optimizer_of_a_checkpoint_is_known(saved: str, other: type, tmp_path: Path) -> None:
    trainer(tmp_path, MarkComplete(), optim=saved).train()
    checkpoint = tmp_path / "checkpoint-6"
    name = {"adopt": "ADOPT", "adamw_torch": "AdamW"}[saved]
    for wrong in (other, other([torch.nn.Parameter(torch.ones(1))])):
        message = f"is that of {name}, and the optimizer is {other.__name__}: .*adopt-hf convert CHECKPOINT --to .*only"
        with pytest.raises(ValueError, match=message):
            checkpoints.check_optimizer(checkpoint, wrong)
    checkpoints.check_optimizer(checkpoint, LayerwiseADOPT if saved == "adopt" else torch.optim.SGD)
    mark(checkpoint, 6)  # as an earlier version did
    checkpoints.check_optimizer(checkpoint, other)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    write(tmp_path, 20)
    words = rf"writing into {tmp_path} failed, as it does on a full disk \(.* MiB are free .*the last complete .*-20"
    for numel in (10, 10**6):  # torch fails in other places, and with other words
        with pytest.raises(DiskFullError, match=words), names_a_full_disk(tmp_path):
            torch.save({"a": torch.zeros(numel)}, "/dev/full")
    with pytest.raises(DiskFullError, match=words), names_a_full_disk(tmp_path):
        Path("/dev/full").write_text("text")
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("x"), FileNotFoundError(2, "no")):
        with pytest.raises(type(other)), names_a_full_disk(tmp_path):
            raise other


def test_folders_can_be_text(tmp_path: Path) -> None:
    """`args.output_dir` of the Trainer is text."""
    run, ten = str(tmp_path), str(write(tmp_path, 10))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 10, "epoch": 1.0}))
    shutil.copy(tmp_path / "trainer_state.json", ten)
    args = TrainingArguments(run, max_steps=10, use_cpu=True, report_to="none")
    Accelerator(cpu=True)  # TrainingArguments have reset it
    checkpoints.mark(ten, 10, ADOPT([torch.nn.Parameter(torch.zeros(1))]))
    assert checkpoints.missing(ten) is None
    assert checkpoints.step_of(ten) == 10
    assert checkpoints.checkpoints_in(run) == [Path(ten)]
    assert checkpoints.last_complete(run) == (Path(ten), [])
    assert checkpoints.layout_of(ten) == checkpoints.layout()
    checkpoints.check_layout(ten)
    checkpoints.check_optimizer(ten, ADOPT)
    checkpoints.check_writable(run)
    assert checkpoints.to_resume(run, "last") == Path(ten)
    assert ten.rsplit("/", 1)[-1] in checkpoints.after_interrupt(["train.py"], run)
    assert checkpoints.is_finished(ten, args)
    assert not checkpoints.is_saved(run, ten, "model.safetensors")
    with pytest.raises(DiskFullError, match="the last complete checkpoint is"), checkpoints.names_a_full_disk(run):
        raise OSError(28, "No space left on device")
    nine = write(tmp_path, 9)
    checkpoints.rotate(run, 1, keep=[str(nine)])
    assert nine.is_dir()
    checkpoints.forget_later(run, 9)
    assert checkpoints.missing(ten) is not None
