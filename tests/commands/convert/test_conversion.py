"""Checkpoints of real runs, converted: they resume, and what cannot be converted is one line and changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import Trainer, TrainingArguments
from transformers.optimization import Adafactor

from adopt_hf import ADOPTW, commands
from adopt_hf.commands.convert import conversion, files, folder, layouts
from adopt_hf.integrations import checkpoints
from adopt_hf.integrations.checkpoints import MARK, MarkComplete, missing
from tests.integrations.conftest import make_model
from tests.support.processes import environment, python, start

SAVED, STEPS = 4, 8
AFTER = ("complete.json", "converted.json", "optimizer.pt")


def trainer(output: Path, optim: str, **fields: Any) -> Trainer:
    args = TrainingArguments(
        **{
            "output_dir": str(output),
            "optim": optim,
            "learning_rate": 3e-3,
            "weight_decay": 0.1,
            "per_device_train_batch_size": 4,
            "max_steps": STEPS,
            "save_steps": SAVED,
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_steps": 1,
            **fields,
        }
    )
    tokens = torch.randint(64, (32, 8), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": row, "labels": row} for row in tokens]
    return Trainer(model=make_model(), args=args, train_dataset=data, callbacks=[MarkComplete()])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`runs(optim)`: the folder of a finished run, made once."""
    found: dict[str, Path] = {}

    def run(optim: str) -> Path:
        if optim not in found:
            found[optim] = tmp_path_factory.mktemp(optim)
            trainer(found[optim], optim).train()
        return found[optim]

    return run


@pytest.fixture
def checkpoint(runs: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint of AdamW, in a copy of its own."""
    return Path(shutil.copytree(runs("adamw_torch") / f"checkpoint-{SAVED}", tmp_path / "run" / f"checkpoint-{SAVED}"))


def call(*words: object) -> int:
    """Run the command in this process; return its exit code."""
    before = sys.argv
    sys.argv = ["adopt_hf", "convert", *map(str, words)]
    try:
        commands.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def contents(root: Path) -> dict[str, bytes | None]:
    """Return what is in a folder, by path; folders have no contents."""
    paths = sorted(root.rglob("*"))
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in paths}


def state_in(checkpoint: Path) -> Any:
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)


def assert_close(ours: Any, theirs: Any) -> None:
    for key, entry in theirs["state"].items():
        for name, value in entry.items():
            torch.testing.assert_close(ours["state"][key][name], value, rtol=4e-7, atol=1e-38)


# -- it resumes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused"])
def test_the_trainer_goes_on_with_adopt(optim: str, runs: Callable[[str], Path], tmp_path: Path, caplog: Any) -> None:
    """With the step count, the decay groups, the schedule and the weights of the checkpoint; no number is replaced."""
    source = runs(optim) / f"checkpoint-{SAVED}"
    before = contents(source)
    assert call(source, "--to", "adopt", "--output", tmp_path / "new" / f"checkpoint-{SAVED}") == 0
    new = tmp_path / "new" / f"checkpoint-{SAVED}"
    assert contents(source) == before
    assert missing(new) is None
    assert checkpoints.last_complete(new.parent) == (new, [])
    made = contents(new)
    assert {name: data for name, data in made.items() if name not in AFTER} == {
        name: data for name, data in before.items() if name not in AFTER
    }
    marked = json.loads(made[MARK])
    assert (marked["optimizer"], marked["layout"]) == ({"class": "ADOPTW", "is_adopt": True}, "whole")
    again = trainer(tmp_path / "new", "adopt")
    again.train(resume_from_checkpoint=str(new))
    inner = again.optimizer.optimizer
    assert type(inner) is ADOPTW
    assert {float(state["step"]) for state in inner.state.values()} == {float(STEPS)}
    assert [group["weight_decay"] for group in inner.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in inner.param_groups] == [0.0, 0.0]  # the schedule has ended
    assert "other hyperparameters" not in caplog.text
    losses = [entry["loss"] for entry in again.state.log_history if "loss" in entry]
    assert len(losses) == STEPS


def test_there_and_back(checkpoint: Path, tmp_path: Path) -> None:
    """The state returns to rounding, the groups but for `fused` exactly, and AdamW's run ends as it would have."""
    assert call(checkpoint, "--to", "adopt") == 0
    adopt = tmp_path / "run-adopt" / checkpoint.name
    assert call(adopt, "--to", "adamw", "--output", tmp_path / "back" / checkpoint.name) == 0
    back = tmp_path / "back" / checkpoint.name
    ours, theirs = state_in(back), state_in(checkpoint)
    assert ours["param_groups"] == theirs["param_groups"]
    assert_close(ours, theirs)
    assert json.loads((back / MARK).read_text())["optimizer"] == {"class": "AdamW", "is_adopt": False}
    ends = []
    for output in (back, checkpoint):
        again = trainer(output.parent, "adamw_torch")
        again.train(resume_from_checkpoint=str(output))
        ends.append(torch.cat([p.detach().flatten() for p in again.model.parameters()]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def test_a_run_of_adopt_becomes_adamws(runs: Callable[[str], Path], tmp_path: Path) -> None:
    source = runs("adopt") / f"checkpoint-{SAVED}"
    new = tmp_path / "new" / source.name
    assert call(source, "--to", "adamw", "--output", new) == 0
    again = trainer(tmp_path / "new", "adamw_torch_fused")
    again.train(resume_from_checkpoint=str(new))
    assert type(again.optimizer.optimizer) is torch.optim.AdamW
    back = tmp_path / "back" / source.name
    assert call(new, "--to", "adopt", "--output", back) == 0
    assert_close(state_in(back), state_in(source))


def test_options_that_are_written(checkpoint: Path, tmp_path: Path) -> None:
    options = ("--optim_args", "beta2=0.99, clip_exp=none")
    assert call(checkpoint, "--to", "adopt", "--output", tmp_path / "a", *options) == 0
    groups = state_in(tmp_path / "a")["param_groups"]
    assert [(g["betas"], g["clip_exp"], g["weight_decay"]) for g in groups] == [
        ((0.9, 0.99), None, 0.1),
        ((0.9, 0.99), None, 0.0),
    ]
    assert call(tmp_path / "a", "--to", "adamw", "--output", tmp_path / "b", "--optim_args", "eps=1e-7") == 0
    assert [(g["betas"], g["eps"]) for g in state_in(tmp_path / "b")["param_groups"]] == [((0.9, 0.999), 1e-7)] * 2


def test_accelerates_own_checkpoint(tmp_path: Path) -> None:
    """`save_state` in a loop of one's own, without a mark."""
    accelerator = Accelerator(cpu=True)
    model = make_model()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3))
    tokens = torch.ones(2, 4, dtype=torch.long)
    for _ in range(3):
        accelerator.backward(model(input_ids=tokens, labels=tokens).loss)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.save_state(str(tmp_path / "state"))
    assert call(tmp_path / "state", "--to", "adopt") == 0
    model, adopt = accelerator.prepare(make_model(), ADOPTW(model.parameters(), lr=1e-3))
    accelerator._models, accelerator._optimizers = [model], [adopt]
    accelerator.load_state(str(tmp_path / "state-adopt"))
    assert {float(state["step"]) for state in adopt.optimizer.state.values()} == {3.0}
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_default_output_of_the_current_folder(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint)
    assert call(Path(), "--to", "adopt") == 0
    assert (tmp_path / "run-adopt" / checkpoint.name / MARK).is_file()


def test_paths_below_the_current_folder_are_shown_as_they_are_written_there(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(checkpoint.relative_to(tmp_path), "--to", "adopt") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"run-adopt/{checkpoint.name} has the state of ADOPT\n")
    assert f'resume_from_checkpoint="run-adopt/{checkpoint.name}", and an output_dir of its own\n' in said


def test_in_place_and_the_default_output(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    assert call(checkpoint, "--to", "adopt") == 0
    said = capsys.readouterr().out
    beside = tmp_path / "run-adopt" / checkpoint.name
    assert said.startswith(f"{beside} has the state of ADOPT\n  param group 0: lr=")
    assert said.endswith(f'resume_from_checkpoint="{beside}", and an output_dir of its own\n')
    assert call(checkpoint, "--to", "adopt", "--in-place") == 0
    assert contents(checkpoint) == contents(beside)
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == [checkpoint.name]


@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in place"])
def test_a_checkpoint_of_links(in_place: bool, checkpoint: Path, tmp_path: Path) -> None:
    """The new checkpoint has the files themselves, also those of a linked folder; what is linked to stays as it is."""
    store = tmp_path / "store"
    (store / "extra").mkdir(parents=True)
    (store / "extra" / "notes.txt").write_text("kept")
    (checkpoint / "model.safetensors").rename(store / "weights")
    (checkpoint / "model.safetensors").symlink_to(store / "weights")
    (checkpoint / "extra").symlink_to(store / "extra")
    link = tmp_path / "latest"
    link.symlink_to(checkpoint)
    before, old, stored = contents(store), contents(checkpoint), (store / "weights").read_bytes()
    assert call(link, "--to", "adopt", *(["--in-place"] if in_place else [])) == 0
    new = checkpoint if in_place else tmp_path / "run-adopt" / checkpoint.name
    assert link.is_symlink()
    assert (new / "extra" / "notes.txt").read_text() == "kept"
    assert (new / "model.safetensors").read_bytes() == stored
    assert not any(path.is_symlink() for path in new.rglob("*"))
    assert contents(store) == before
    assert in_place or contents(checkpoint) == old


def test_without_a_mark_of_weights_of_any_name(checkpoint: Path, tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors"):
        source = Path(shutil.copytree(checkpoint, tmp_path / Path(name).stem))
        no_mark(source)
        weights = (source / "model.safetensors").rename(source / "weights")
        (source / name).parent.mkdir(exist_ok=True)
        if name.endswith(".bin"):
            torch.save({"weight": torch.ones(2)}, source / name)
            weights.unlink()
        else:
            weights.rename(source / name)
        assert call(source, "--to", "adopt", "--output", tmp_path / "new" / Path(name).stem) == 0


# -- bad input ---------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def no_mark(checkpoint: Path) -> None:
    (checkpoint / MARK).unlink()


def cut_state(checkpoint: Path) -> None:
    no_mark(checkpoint)
    cut(checkpoint / "optimizer.pt")


def cut_weights(checkpoint: Path) -> None:
    no_mark(checkpoint)
    cut(checkpoint / "model.safetensors")


def incomplete(checkpoint: Path) -> None:
    (checkpoint / "scheduler.pt").unlink()


def unfinished(checkpoint: Path) -> None:
    no_mark(checkpoint)
    (checkpoint / "trainer_state.json").unlink()


def without_state(checkpoint: Path) -> None:
    no_mark(checkpoint)
    (checkpoint / "optimizer.pt").unlink()


def of_zero(checkpoint: Path) -> None:
    without_state(checkpoint)
    (checkpoint / "global_step4").mkdir()


def of_sgd(checkpoint: Path) -> None:
    no_mark(checkpoint)
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")


def with_amsgrad(checkpoint: Path) -> None:
    no_mark(checkpoint)
    optimizer = torch.optim.AdamW(make_model().parameters(), amsgrad=True)
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")


def diverged(checkpoint: Path) -> None:
    no_mark(checkpoint)
    saved = state_in(checkpoint)
    saved["state"][2]["exp_avg"][0] = torch.nan
    torch.save(saved, checkpoint / "optimizer.pt")


def foreign_file(checkpoint: Path) -> None:
    no_mark(checkpoint)
    torch.save({"weights": torch.ones(2)}, checkpoint / "optimizer.pt")


def orphan(checkpoint: Path) -> None:
    no_mark(checkpoint)
    saved = state_in(checkpoint)
    saved["state"][99] = saved["state"][0]
    torch.save(saved, checkpoint / "optimizer.pt")


def several(checkpoint: Path) -> None:
    no_mark(checkpoint)
    shutil.copy(checkpoint / "optimizer.pt", checkpoint / "optimizer_1.bin")


def of_ranks(checkpoint: Path) -> None:
    no_mark(checkpoint)
    (checkpoint / "optimizer.pt").rename(checkpoint / "optimizer_0_rank0.bin")


def bad_record(checkpoint: Path) -> None:
    (checkpoint / "converted.json").write_text("[")


def cut_schedule(checkpoint: Path) -> None:
    no_mark(checkpoint)
    cut(checkpoint / "scheduler.pt")


def empty_random_state(checkpoint: Path) -> None:
    no_mark(checkpoint)
    (checkpoint / "rng_state.pth").write_bytes(b"")


def cut_trainer_state(checkpoint: Path) -> None:
    no_mark(checkpoint)
    cut(checkpoint / "trainer_state.json")


def trainer_state_of_others(checkpoint: Path) -> None:
    no_mark(checkpoint)
    (checkpoint / "trainer_state.json").write_text("[]")


def groups_of_numbers(checkpoint: Path) -> None:
    no_mark(checkpoint)
    torch.save(state_in(checkpoint) | {"param_groups": [1]}, checkpoint / "optimizer.pt")


def one_beta(checkpoint: Path) -> None:
    no_mark(checkpoint)
    saved = state_in(checkpoint)
    saved["param_groups"][0]["betas"] = 0.9
    torch.save(saved, checkpoint / "optimizer.pt")


def of_lamb(checkpoint: Path) -> None:
    no_mark(checkpoint)
    saved = state_in(checkpoint)
    saved["param_groups"][0] |= {"bias_correction": True, "grad_averaging": True}
    torch.save(saved, checkpoint / "optimizer.pt")


def saved_by(optimizer: Any, checkpoint: Path) -> None:
    no_mark(checkpoint)
    torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")


def of_adafactor(checkpoint: Path) -> None:
    saved_by(Adafactor(make_model().parameters()), checkpoint)


def of_lion(checkpoint: Path) -> None:
    group = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "params": [0]}
    no_mark(checkpoint)
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [group]}, checkpoint / "optimizer.pt")


def of_muon(checkpoint: Path) -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    saved_by(torch.optim.Muon([p for p in make_model().parameters() if p.dim() == 2]), checkpoint)


def with_foreign_class(checkpoint: Path) -> None:
    no_mark(checkpoint)
    torch.save(state_in(checkpoint) | {"model": torch.nn.Linear(1, 1)}, checkpoint / "optimizer.pt")


def with_tensor_as_amsgrad(checkpoint: Path) -> None:
    no_mark(checkpoint)
    saved = state_in(checkpoint)
    saved["param_groups"][0]["amsgrad"] = torch.tensor([True, False])
    torch.save(saved, checkpoint / "optimizer.pt")


def without_weights(checkpoint: Path) -> None:
    no_mark(checkpoint)
    (checkpoint / "model.safetensors").unlink()


def without_a_shard(checkpoint: Path) -> None:
    no_mark(checkpoint)
    (checkpoint / "model.safetensors").rename(checkpoint / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def dead_link(checkpoint: Path) -> None:
    (checkpoint / "gone").symlink_to("nowhere")


def link_to_itself(checkpoint: Path) -> None:
    (checkpoint / "inside").mkdir()
    (checkpoint / "inside" / "again").symlink_to("..")


def pipe(checkpoint: Path) -> None:
    os.mkfifo(checkpoint / "pipe")


def cut_config(checkpoint: Path) -> None:
    no_mark(checkpoint)
    cut(checkpoint / "config.json")


def in_float8(checkpoint: Path) -> None:
    no_mark(checkpoint)
    saved = state_in(checkpoint)
    saved["state"][2]["exp_avg"] = saved["state"][2]["exp_avg"].to(torch.float8_e5m2)
    torch.save(saved, checkpoint / "optimizer.pt")


BAD: dict[Callable[[Path], None], str] = {
    cut_schedule: "scheduler.pt cannot be read, it is cut off or no file of torch: ",
    empty_random_state: "rng_state.pth cannot be read, it is cut off or no file of torch: ",
    cut_trainer_state: "trainer_state.json is cut off or damaged: it has no global_step",
    trainer_state_of_others: "trainer_state.json is cut off or damaged: it has no global_step",
    groups_of_numbers: "the saved state has param_groups [1], which must be a list of dicts",
    one_beta: "it has betas=0.9, and AdamW has two: it is the state of another optimizer",
    of_lamb: "cannot be converted to ADOPT: it is the state of LAMB or NovoGrad, not of AdamW: its param groups have ",
    in_float8: "the state of parameter 2 has exp_avg of torch.float8_e5m2, which must be a floating-point tensor",
    cut_state: "optimizer.pt cannot be read, it is cut off or no file of torch: ",
    cut_weights: "model.safetensors is cut off or damaged: ",
    incomplete: "is not a complete checkpoint: no scheduler.pt",
    unfinished: "is not a complete checkpoint: it has none of complete.json, trainer_state.json, random_states_0.pkl",
    without_state: "has no optimizer state (no optimizer.pt, ",
    of_zero: "global_step4 is DeepSpeed's own state, whose parts belong to one number of processes: make a universal "
    "checkpoint of it with `python -m deepspeed.checkpoint.ds_to_universal --input_folder ",
    of_sgd: "cannot be converted to ADOPT: it is the state of SGD, not of AdamW: its param groups have dampening, ",
    of_adafactor: "cannot be converted to ADOPT: it is the state of Adafactor, not of AdamW: its param groups have ",
    of_lion: "cannot be converted to ADOPT: it is the state of Lion, not of AdamW: its param groups have betas, lr, ",
    of_muon: "cannot be converted to ADOPT: it is the state of Muon, not of AdamW: its param groups have adjust_lr_fn",
    with_foreign_class: "optimizer.pt holds an object of torch.nn.modules.linear.Linear, and a conversion reads tens",
    with_tensor_as_amsgrad: "cannot be converted to ADOPT: it has amsgrad=tensor([ True, False]), which must be True",
    without_weights: "is not a complete checkpoint: it has no weights, such as model.safetensors",
    without_a_shard: "is not a complete checkpoint: no model-00002-of-00002.safetensors, which model.safetensors.index",
    dead_link: "gone is a link that leads nowhere, and a checkpoint has files and folders: remove it",
    link_to_itself: "again is a link to a folder that it is in: remove the link",
    pipe: "pipe is neither a file nor a folder, and a checkpoint has files and folders: remove it",
    cut_config: "config.json is cut off or damaged: ",
    with_amsgrad: "cannot be converted to ADOPT: it was trained with amsgrad=True, which ADOPT does not have",
    diverged: "the state of parameter 2 has exp_avg with numbers that are not finite: the run has diverged",
    foreign_file: "optimizer.pt is not the state of an optimizer: it has no param_groups",
    orphan: "the state of parameter 99 is there, and no param group has this parameter",
    several: "is the state of several optimizers",
    of_ranks: "is FSDP's LOCAL_STATE_DICT",
    bad_record: "converted.json cannot be read, remove it: ",
}


@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in place"])
@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_what_cannot_be_converted(spoil: Any, in_place: bool, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    spoil(checkpoint)
    before = contents(tmp_path)
    assert call(checkpoint, "--to", "adopt", *(["--in-place"] if in_place else [])) == 2
    said = capsys.readouterr()
    assert said.err.startswith("python -m adopt_hf convert: error: ")
    assert BAD[spoil] in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "adamw"), "cannot be converted to AdamW: it is the state of AdamW already"),
        (
            ("--to", "adopt", "--optim_args", "lr=1"),
            "--optim_args sets lr, which is that of the checkpoint: it can set ",
        ),
        (("--to", "adopt", "--optim_args", "backend=fused"), "backend, which is no matter of the saved state"),
        (("--to", "adamw", "--optim_args", "clip_exp=1"), "it can set beta1, beta2, eps"),
        (("--to", "adopt", "--optim_args", "beta3=1"), "optim_args: unknown key 'beta3'"),
        (("--to", "sgd"), "invalid choice: 'sgd'"),
        (("--to", "adopt", "--output", "{checkpoint}"), "exists, and is not overwritten"),
        (("--to", "adopt", "--output", "{checkpoint}/x"), "is inside of the checkpoint, which must stay as it is"),
        (("--to", "adopt", "--output", "x", "--in-place"), "not allowed with argument"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for(words: Any, message: str, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    before = contents(tmp_path)
    assert call(checkpoint, *(str(word).format(checkpoint=checkpoint) for word in words)) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_folders_that_are_no_checkpoints(checkpoint: Path, runs: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere: name that of a checkpoint"):
        conversion.convert(tmp_path / "nowhere", "adopt")
    with pytest.raises(ValueError, match=rf"is the folder of a run: name one of its checkpoints, .*{checkpoint.name}"):
        conversion.convert(checkpoint.parent, "adopt")
    adopts = runs("adopt") / checkpoint.name
    with pytest.raises(ValueError, match="cannot be converted to ADOPT: it is the state of ADOPT already"):
        conversion.convert(adopts, "adopt", tmp_path / "new")


def test_a_full_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda what, path, **kwargs: save(what, "/dev/full", **kwargs))
    before = contents(tmp_path)
    assert call(checkpoint, "--to", "adopt") == 2
    assert "failed, as it does on a full disk" in capsys.readouterr().err
    assert contents(tmp_path) == before


# -- a kill ------------------------------------------------------------------------------------------------------------

SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it otherwise
from adopt_hf import commands
from adopt_hf.commands.convert import folder
copy = folder.copy
def slowly(*args):
    copy(*args)
    print("copied", flush=True)
    time.sleep(60)
folder.copy = slowly
sys.argv = ["adopt_hf", "convert", *sys.argv[1:]]
commands.main()
"""


@pytest.fixture
def halfway(checkpoint: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`halfway(words...)`: a process that converts, and has written a part of the new checkpoint."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: object) -> subprocess.Popen[str]:
        process = start(["-c", SLOW, *map(str, words)], environment())
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "copied\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in place"])
def test_a_kill_leaves_the_old_and_nothing_that_passes_for_new(
    in_place: bool, checkpoint: Path, tmp_path: Path, halfway: Callable[..., subprocess.Popen[str]]
) -> None:
    before = contents(checkpoint)
    words = (checkpoint, "--to", "adopt", *(["--in-place"] if in_place else []))
    process = halfway(*words)
    assert contents(checkpoint) == before
    with pytest.raises(ValueError, match=r"another process is writing .*unfinished: wait for it to end"):
        conversion.convert(checkpoint, "adopt", in_place=in_place)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert contents(checkpoint) == before
    assert not (tmp_path / "run-adopt" / checkpoint.name).exists()
    assert call(*words) == 0  # and removes what was left
    assert not list(tmp_path.rglob("*.unfinished"))
    new = checkpoint if in_place else tmp_path / "run-adopt" / checkpoint.name
    assert missing(new) is None
    assert "clip_exp" in state_in(new)["param_groups"][0]


AT_EACH_MOMENT = """
import os, shutil, signal, sys
from pathlib import Path
from adopt_hf.commands.convert import conversion, layouts
from adopt_hf.integrations.checkpoints import missing

source, work, in_place = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "in place"
checkpoint = work / "run" / source.name
target = checkpoint if in_place else work / "run-adopt" / source.name

def is_new(folder):
    assert missing(folder) is None, missing(folder)
    return "clip_exp" in layouts.find(folder).groups(folder)[0]

def convert_and_die_at(moment):
    passed, here = 0, str(work)
    def count(event, args):
        nonlocal passed
        if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or (event == "open" and here in str(args[0])):
            passed += 1
            if passed == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    conversion.convert(checkpoint, "adopt", in_place=in_place)
    os._exit(0)

found, moment = [], 0
while True:
    moment += 1
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, checkpoint)
    pid = os.fork()
    if pid == 0:
        convert_and_die_at(moment)
    killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if in_place:
        found.append("new" if is_new(checkpoint) else "old")
    else:
        assert not is_new(checkpoint)
        found.append("new" if target.exists() and is_new(target) else "old")
    if killed == 0:
        break
    assert killed == -signal.SIGKILL, killed
    try:
        conversion.convert(checkpoint, "adopt", in_place=in_place)
    except ValueError as error:
        assert found[-1] == "new" and ("already" in str(error) or "exists" in str(error)), error
    assert is_new(target)
    assert not list(work.rglob("*.unfinished")), list(work.rglob("*.unfinished"))
print(*found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("in_place", ["beside", "in place"])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new(in_place: str, checkpoint: Path, tmp_path: Path) -> None:
    """The process is killed at each file and folder that it opens, makes, renames or removes, one after the other."""
    found = python("-c", AT_EACH_MOMENT, checkpoint, tmp_path / "work", in_place).split()
    assert found == sorted(found, reverse=True)  # old, old, ..., new
    assert found.count("old") > 20
    assert found.count("new") > (2 if in_place == "in place" else 0)  # it removes the old one at the end


@pytest.mark.slow
def test_an_interrupt_is_a_line(
    checkpoint: Path, tmp_path: Path, halfway: Callable[..., subprocess.Popen[str]]
) -> None:
    before = contents(tmp_path)
    process = halfway(checkpoint, "--to", "adopt")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("convert: stopped, nothing has been changed\n")
    assert contents(tmp_path) == before


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_all_is_written(tmp_path: Path) -> None:
    target = tmp_path / "a" / "new"
    with folder.written(target, replaces=False) as path:
        (path / "file").write_text("new")
        assert not target.exists()
    assert contents(target) == {"file": b"new"}
    with folder.written(target, replaces=True) as path:
        (path / "other").write_text("newer")
        assert contents(target) == {"file": b"new"}
    assert contents(target) == {"other": b"newer"}
    with pytest.raises(RuntimeError, match="stopped"), folder.written(target, replaces=True):
        raise RuntimeError("stopped")
    assert contents(target) == {"other": b"newer"}
    assert [path.name for path in target.parent.iterdir()] == ["new"]


def test_an_interrupt_at_the_very_end_is_too_late(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the new folder is in its place, the rest is done: no message says that nothing has been changed."""
    remove = shutil.rmtree

    def interrupted(*args: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        remove(*args, **options)

    monkeypatch.setattr(folder.shutil, "rmtree", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    assert call(checkpoint, "--to", "adopt", "--in-place") == 0
    assert signal.getsignal(signal.SIGINT) is handler
    assert missing(checkpoint) is None
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_classes_are_named_that_a_file_of_deepspeed_needs(tmp_path: Path) -> None:
    """They are read without a check, as DeepSpeed reads them, so that a class may be missing."""
    for text, wanted in (
        (b"cnowhere_installed\nThing\n.", "holds an object of nowhere_installed, which is not installed: install it"),
        (b"cjson\nNoSuchThing\n.", "holds an object of json.NoSuchThing, and a conversion reads tensors"),
    ):
        with zipfile.ZipFile(tmp_path / "state.pt", "w") as file:
            file.writestr("state/data.pkl", text)
            file.writestr("state/version", b"3")
            file.writestr("state/byteorder", b"little")
        with pytest.raises(ValueError, match=f"state.pt {wanted}"):
            files.load(tmp_path / "state.pt", weights_only=False)


def test_where_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    monkeypatch.setattr(sys, "platform", "darwin")
    with (
        pytest.raises(ValueError, match=r"--in-place needs Linux, .*: write --output DIR instead"),
        folder.written(tmp_path / "old", replaces=True),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_each_layout_that_is_refused_has_a_reason() -> None:
    assert all(reason[0].islower() or reason[0].isupper() for reason in layouts.NOT_CONVERTED.values())
    assert len(layouts.NOT_CONVERTED) >= 4
