"""examples/gpt2_pretraining at toy size, in this process: what it writes, resumes, reuses and refuses.

- a run leaves checkpoints, a model, loss.png and both curves with perplexities, under both scripts;
- both scripts compute the same thing;
- 40 steps are 20 steps and 20 more, bit for bit;
- an incomplete checkpoint, or one of another launch mode, is not resumed;
- what is tokenised once is not tokenised again, and what a killed run left unfinished is not read;
- everything wrong is one line and exit code 2, and nothing is overwritten;
- an AdamW twin differs in the optimizer lines alone.

The same with real processes, kills and launchers: test_gpt2_pretraining_processes.py.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainingArguments

from examples.gpt2_pretraining import arguments, checkpoints, data, settings, sources, train_accelerate
from examples.shared.errors import InputError
from tests.examples.script import Result
from tests.examples.script import call as call_script
from tests.examples.toy import write_toy

EXAMPLE = Path(__file__).parents[2] / "examples" / "gpt2_pretraining"
CONFIGS = EXAMPLE / "configs"
SCRIPTS = ("train.py", "train_accelerate.py")


def call(script: str, *argv: object) -> Result:
    return call_script(EXAMPLE / script, *argv)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield write_toy(folder, validation_fraction=0.1, sample_tokens=8, use_cpu=True)


@pytest.fixture(scope="module", params=SCRIPTS)
def finished(request: pytest.FixtureRequest, toy: Path) -> tuple[str, Path, Result]:
    """(script, output folder, result) of a complete run of 40 steps."""
    output = toy.parent / f"finished-{request.param}"
    result = call(request.param, toy, "--output_dir", output, "--report_to", "tensorboard")
    assert result.code == 0, result.err
    return request.param, output, result


def history(output: Path) -> list[dict[str, float]]:
    return json.loads((output / "trainer_state.json").read_text())["log_history"]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ----- a run -----


def test_what_a_run_leaves(finished: tuple[str, Path, Result]) -> None:
    _script, output, result = finished
    for name in ("checkpoint-20", "checkpoint-40", "config.json", "model.safetensors", "tokenizer.json", "run.yaml"):
        assert (output / name).exists(), name
    png = (output / "loss.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) > 10_000
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    assert width >= 600
    assert height >= 400
    assert "sample after 40 steps" in result.out
    assert "validation loss" in result.out
    assert "100%" in result.err, "no progress bar"
    lines = re.split(r"[\n\r]|\x1b\[A", result.err)  # with what moves the cursor between two bars
    said = [line for line in lines if "loss" in line and "it/s" not in line]
    assert {"step 40: training loss", "step 40: validation loss"} <= {line.rsplit(" ", 1)[0] for line in said}
    assert [line for line in said if not re.fullmatch(r"step \d+: (training|validation) loss \d+\.\d{3}", line)] == []
    bars = r"\s*((Generating|tokenising) .*|.*\d+%\|.*|)"
    assert [line for line in lines if line not in said and not re.fullmatch(bars, line)] == [], "more than bar and loss"
    out = [line for line in result.out.splitlines() if line.startswith(("-----", "step "))]
    assert [line.split()[0] for line in out] == ["-----", "-----", "step"]

    train = [entry for entry in history(output) if "loss" in entry]
    evaluation = [entry for entry in history(output) if "eval_loss" in entry]
    assert [entry["step"] for entry in train] == list(range(5, 41, 5))
    assert [entry["step"] for entry in evaluation] == [10, 20, 30, 40]
    assert train[-1]["loss"] < train[0]["loss"]
    assert evaluation[-1]["eval_loss"] < evaluation[0]["eval_loss"]
    for entry in train:
        assert entry["perplexity"] == pytest.approx(math.exp(entry["loss"]))
    for entry in evaluation:
        assert entry["eval_perplexity"] == pytest.approx(math.exp(entry["eval_loss"]))


def test_tensorboard_has_losses_and_perplexities(finished: tuple[str, Path, Result]) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, output, _ = finished
    tags: set[str] = set()
    for event_file in output.glob("runs/**/events.out.tfevents.*"):
        events = accumulators.EventAccumulator(str(event_file))
        events.Reload()
        tags |= set(events.Tags()["scalars"])
    assert {"train/loss", "train/perplexity", "eval/loss", "eval/perplexity"} <= tags


def test_adopt_is_what_trained(finished: tuple[str, Path, Result]) -> None:
    script, output, _ = finished
    name = {"train.py": "optimizer.pt", "train_accelerate.py": "optimizer.bin"}[script]
    saved = torch.load(output / "checkpoint-40" / name, weights_only=True)
    assert "clip_exp" in saved["param_groups"][0]
    assert {float(state["step"]) for state in saved["state"].values()} == {40.0}


def test_a_checkpoint_is_a_model(finished: tuple[str, Path, Result]) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    _, output, _ = finished
    model = GPT2LMHeadModel.from_pretrained(output / "checkpoint-40")
    tokenizer = AutoTokenizer.from_pretrained(output / "checkpoint-40")
    assert model.config.vocab_size == len(tokenizer)
    assert same_weights(output, output / "checkpoint-40")
    text = "alpha beta\n\tgamma é"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_both_scripts_compute_the_same(toy: Path) -> None:
    """Same data order, effective batch, loss and update; over the end of an epoch with a short last step."""
    outputs = [toy.parent / f"same-{script}" for script in SCRIPTS]
    for script, output in zip(SCRIPTS, outputs, strict=True):
        options = ("--dropout", 0, "--max_steps", 30, "--per_device_train_batch_size", 16)
        options += ("--gradient_accumulation_steps", 4, "--logging_steps", 1, "--sample_tokens", 0)
        assert call(script, toy, "--output_dir", output, *options).code == 0
    assert history(outputs[0])[-1]["epoch"] > 1, "the run must cross the end of an epoch"
    for key in ("loss", "eval_loss", "learning_rate", "grad_norm", "epoch"):
        trainer, loop = ([entry[key] for entry in history(output) if key in entry] for output in outputs)
        if key == "epoch":  # the Trainer's last entry, on the run's duration, is its own
            trainer = trainer[:-1]
        assert len(loop) > 0, key
        assert trainer == pytest.approx(loop, rel=1e-5), key


def test_an_untrained_model_is_as_good_as_guessing(toy: Path) -> None:
    """The absolute scale of the loss: ln(vocabulary), for the first step and the evaluation alike."""
    output = toy.parent / "untrained"
    options = ("--max_steps", 1, "--logging_steps", 1, "--learning_rate", 0, "--sample_tokens", 0)
    assert call("train.py", toy, "--output_dir", output, *options).code == 0
    vocabulary = json.loads((output / "config.json").read_text())["vocab_size"]
    for entry in history(output):
        for key in entry.keys() & {"loss", "eval_loss"}:
            assert entry[key] == pytest.approx(math.log(vocabulary), rel=0.01)


@pytest.mark.parametrize("script", SCRIPTS)
def test_last_evaluation_and_save_always_happen(script: str, toy: Path) -> None:
    output = toy.parent / f"always-{script}"
    options = ("--max_steps", 3, "--eval_strategy", "no", "--save_strategy", "no")
    assert call(script, toy, "--output_dir", output, *options).code == 0
    assert [entry["step"] for entry in history(output) if "eval_loss" in entry] == [3]
    assert (output / "model.safetensors").exists()
    assert (output / "loss.png").exists()
    assert not list(output.glob("checkpoint-*"))


def test_own_validation_split_is_used(toy: Path, tmp_path: Path) -> None:
    for split, count in (("train", 60), ("validation", 7)):
        lines = (toy.parent / "toy.jsonl").read_text().splitlines()[:count]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    data = arguments.DataArguments(dataset_name=str(tmp_path))
    source = sources.from_datasets(data)
    assert len(list(source.train())) == 60
    assert len(list(source.validation())) == 7


# ----- resuming -----


@pytest.mark.parametrize("asked", ["last", "path"])
def test_forty_steps_are_twenty_and_twenty(finished: tuple[str, Path, Result], toy: Path, asked: str) -> None:
    script, output, _ = finished
    again = toy.parent / f"again-{asked}-{script}"
    shutil.copytree(output / "checkpoint-20", again / "checkpoint-20")
    where = "last" if asked == "last" else again / "checkpoint-20"
    result = call(script, toy, "--output_dir", again, "--resume_from_checkpoint", where)
    assert result.code == 0, result.err
    assert same_weights(output, again)
    name = {"train.py": "optimizer.pt", "train_accelerate.py": "optimizer.bin"}[script]
    one, other = (torch.load(folder / "checkpoint-40" / name, weights_only=True) for folder in (output, again))
    assert one["param_groups"] == other["param_groups"]
    for index, state in one["state"].items():
        for key, value in state.items():
            assert torch.equal(value, other["state"][index][key]), (index, key)
    losses = [[e["loss"] for e in history(folder) if "loss" in e] for folder in (output, again)]
    assert losses[0] == losses[1], "the curve is not the whole run's"


def test_a_finished_run_stays_as_it_is(finished: tuple[str, Path, Result], toy: Path) -> None:
    script, output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    done = call(script, toy, "--output_dir", output, "--resume_from_checkpoint", "last")
    assert done.code == 0, done.err
    assert done.out == (
        f"finished already: the run in {output} has done all its steps (checkpoint-40), and its model is there; "
        "ask for more by --max_steps or --num_train_epochs, or choose another --output_dir\n"
    )
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_run_that_was_killed_before_it_wrote_its_model(finished: tuple[str, Path, Result], toy: Path) -> None:
    """The model is written, without a step more."""
    script, output, _ = finished
    again = toy.parent / f"unsaved-{script}"
    shutil.copytree(output / "checkpoint-40", again / "checkpoint-40")
    done = call(script, toy, "--output_dir", again, "--resume_from_checkpoint", "last")
    assert done.code == 0, done.err
    assert "step 40: validation loss" in done.out
    assert same_weights(output, again)
    assert sorted(path.name for path in again.glob("checkpoint-*")) == ["checkpoint-40"]


def test_another_optimizer_does_not_go_on(finished: tuple[str, Path, Result], toy: Path) -> None:
    script, output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    more = ("--output_dir", output, "--resume_from_checkpoint", "last", "--max_steps", 60)
    done = call(script, toy, *more, "--optim", "adamw_torch")
    assert done.code == 2
    assert "is that of ADOPT, and the optimizer is AdamW: " in done.last_error
    assert "weights only: " in done.last_error
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


def test_a_full_disk_is_named(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which torch says "unexpected pos 576 vs 534"."""
    output, save = toy.parent / "full", torch.save
    monkeypatch.setattr(torch, "save", lambda what, path, *args, **kwargs: save(what, "/dev/full", *args, **kwargs))
    done = call("train.py", toy, "--output_dir", output, "--max_steps", 4, "--save_steps", 2)
    assert done.code == 2
    assert f"writing into {output} failed, as it does on a full disk (" in done.err
    assert "free some space; there is no complete checkpoint" in done.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_resume_in_a_later_epoch(script: str, toy: Path) -> None:
    """The position in the data is found where an epoch is shorter than the run and ends in a short step."""
    options = ("--per_device_train_batch_size", 16, "--gradient_accumulation_steps", 4, "--max_steps", 30)
    options += ("--save_steps", 15, "--sample_tokens", 0)
    whole, again = toy.parent / f"epochs-{script}", toy.parent / f"epochs-again-{script}"
    assert call(script, toy, "--output_dir", whole, *options).code == 0
    shutil.copytree(whole / "checkpoint-15", again / "checkpoint-15")
    assert call(script, toy, "--output_dir", again, *options, "--resume_from_checkpoint", "true").code == 0
    assert same_weights(whole, again)


def chosen(output: Path, resume: str, script: str) -> Path | None:
    """The checkpoint that a longer run would go on from."""
    args = TrainingArguments(
        str(output), resume_from_checkpoint=resume, optim="adopt", max_steps=100, use_cpu=True, report_to=[]
    )
    result: Path | None = checkpoints.choose(args, script)
    return result


@pytest.mark.parametrize(
    "damage", ["trainer_state.json", "model.safetensors", "optimizer", "r*_state", "complete.json", "half a state"]
)
def test_an_incomplete_checkpoint_is_never_resumed(
    finished: tuple[str, Path, Result], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """'last' passes over it and says why; its path is refused, and so is 'last' where there is no other."""
    script, output, _ = finished
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoint-40"
    if damage == "half a state":
        state = newest / "trainer_state.json"
        size = state.stat().st_size
        state.write_text(state.read_text()[:100])
        reason = f"trainer_state.json has 100 of {size} bytes"
    else:
        (path,) = newest.glob(f"{damage}*")
        path.unlink()
        reason = f"no {path.name}"
    with caplog.at_level(logging.INFO, "adopt_hf"):
        assert chosen(tmp_path, "last", script) == tmp_path / "checkpoint-20"
    said = f"skipping {newest}, which is incomplete: {reason}"
    assert [record.levelname for record in caplog.records if said in record.getMessage()] == ["WARNING"]
    with pytest.raises(InputError, match=f"checkpoint-40 is not a complete checkpoint: {reason}"):
        chosen(tmp_path, str(newest), script)
    shutil.rmtree(tmp_path / "checkpoint-20")
    with pytest.raises(InputError, match=f"checkpoint-40: {reason}.*; start a new run in another --output_dir"):
        chosen(tmp_path, "last", script)


def test_save_total_limit(finished: tuple[str, Path, Result], toy: Path) -> None:
    script, _, _ = finished
    output = toy.parent / f"limit-{script}"
    options = ("--max_steps", 8, "--save_steps", 2, "--save_total_limit", 2, "--sample_tokens", 0)
    assert call(script, toy, "--output_dir", output, *options).code == 0
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-8"]


def test_going_back_makes_later_checkpoints_void(finished: tuple[str, Path, Result], toy: Path) -> None:
    """Otherwise 'last' could go on with what the run was before it went back."""
    script, output, _ = finished
    again = toy.parent / f"back-{script}"
    shutil.copytree(output, again)
    options = ("--max_steps", 25, "--sample_tokens", 0, "--resume_from_checkpoint", again / "checkpoint-20")
    assert call(script, toy, "--output_dir", again, *options).code == 0
    assert chosen(again, "last", script) == again / "checkpoint-25"


def test_a_checkpoint_of_another_launch_mode_is_refused(finished: tuple[str, Path, Result], toy: Path) -> None:
    """The Trainer would load the weights and begin with a new optimizer."""
    script, output, _ = finished
    sharded = toy.parent / f"sharded-{script}" / "checkpoint-20"
    shutil.copytree(output / "checkpoint-20", sharded)
    mark = sharded / "complete.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"layout": "DeepSpeed ZeRO 2"}))
    options = ("--output_dir", sharded.parent, "--resume_from_checkpoint", "last")
    result = call(script, toy, *options)
    assert result.code == 2, result.err
    assert "its layout is 'DeepSpeed ZeRO 2', and this run can only read 'whole'" in result.last_error
    assert json.loads(mark.read_text())["layout"] == "DeepSpeed ZeRO 2", "nothing was written"


# ----- the cache -----


def test_tokenised_once(finished: tuple[str, Path, Result], toy: Path) -> None:
    script, _, _ = finished
    cache = toy.parent / "cache"
    files = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in cache.rglob("*") if p.suffix != ".lock"}
    assert sum(p.suffix == ".uint16" for p in files) == 2
    output = toy.parent / f"reuse-{script}"
    short = ("--max_steps", 1, "--block_size", 8, "--sample_tokens", 0)
    result = call(script, toy, "--output_dir", output, *short, "--log_level", "info")
    assert result.code == 0
    assert files == {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in cache.rglob("*") if p.suffix != ".lock"}
    assert result.err.count("reused") == 3
    assert "tokenised," not in result.err
    assert "trained," not in result.err


def test_an_unfinished_cache_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.uint16"
    with contextlib.suppress(KeyboardInterrupt), data.written_once(path) as unfinished:
        unfinished.write_bytes(b"half")
        raise KeyboardInterrupt
    assert not path.exists()
    with data.written_once(path) as unfinished:
        assert not unfinished.exists(), "a killed run's leftovers must go"
        unfinished.write_bytes(b"whole")
    with data.written_once(path) as unfinished:
        assert unfinished is None
    assert path.read_bytes() == b"whole"
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes of files")
def test_a_cache_that_others_can_write_to_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer"
    before = os.umask(0)
    try:
        for _ in range(2):
            with data.written_once(path) as unfinished:
                if unfinished is not None:
                    unfinished.mkdir()
                    (unfinished / "tokenizer.json").write_text("ours")
        assert unfinished is None  # whatever the umask, what the first has written is for the user only
        (path / "tokenizer.json").chmod(0o666)
        (path / "tokenizer.json").write_text("another user's")
        with data.written_once(path) as unfinished:
            unfinished.mkdir()
    finally:
        os.umask(before)
    assert list(path.iterdir()) == []
    tmp_path.chmod(0o777)
    asked = arguments.DataArguments(cache_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"cannot be trusted: other users can write to .* choose another --cache_dir"):
        data.load(asked, 1)
    tmp_path.chmod(0o700)


def test_a_relative_xdg_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert arguments.DataArguments().cache_dir == str(Path("~/.cache/adopt_hf").expanduser())


def test_the_cache_key_follows_the_text_and_the_tokenizer(tmp_path: Path) -> None:
    root = tmp_path / "lib"
    root.mkdir()
    for number in range(80):
        (root / f"module{number}.py").write_text(f"value = {number}\n" * 5)
    first = sources.stdlib(root)
    assert sources.stdlib(root).key == first.key
    (root / "module3.py").write_text("value = 'another'\n")
    assert sources.stdlib(root).key != first.key
    (root / "module3.py").write_text("value = 3\n" * 5)
    assert sources.stdlib(root).key == first.key
    (root / "module3.py").rename(root / "module3b.py")
    assert sources.stdlib(root).key != first.key
    small, large = data.train_tokenizer(first, 260), data.train_tokenizer(first, 280)
    paths = {data.tokens(first, "train", first.train, tok, tmp_path)[0] for tok in (small, large)}
    paths.add(data.tokens(first, "validation", first.validation, small, tmp_path)[0])
    assert len(paths) == 3


def test_stdlib_is_split_by_file_and_packed_without_loss(tmp_path: Path) -> None:
    source = sources.stdlib()
    train, validation = list(source.train()), list(source.validation())
    assert len(validation) > 10
    assert len(train) > 10 * len(validation)
    assert not set(map(hash, train)) & {hash(text) for text in validation if text.strip()}, "a file is in both"

    documents = validation[:5]
    tokenizer = data.train_tokenizer(sources.Source("five", "", lambda: iter(documents), lambda: iter(documents)), 400)
    few = sources.Source("five", "key", lambda: iter(documents), lambda: iter(documents))
    path, dtype = data.tokens(few, "train", few.train, tokenizer, tmp_path)
    blocks = data.Blocks(path, dtype, 32)
    ids = [token for block in blocks for token in block["input_ids"].tolist()]
    assert len(blocks) == blocks.num_tokens // 32
    assert all(len(b["input_ids"]) == 32 for b in blocks)
    assert "<|endoftext|>".join(documents).startswith(tokenizer.decode(ids))
    assert ids.count(tokenizer.eos_token_id) >= len(documents) - 1
    assert len(data.Blocks(path, dtype, 32, multiple=7)) % 7 == 0
    spread = data.Blocks(path, dtype, 32, limit=4)
    assert len(spread) == 4
    assert torch.equal(spread[1]["input_ids"], blocks[len(blocks) // 4]["input_ids"])


# ----- bad input -----

# name: (script, arguments, what the one line must say). {} stands for the folder of the toy data.
BAD_INPUT: dict[str, tuple[str, list[str], list[str]]] = {
    "unknown optim_args key": ("train.py", ["--optim_args", "beta3=0.9"], ["beta3", "beta2", "clip_exp"]),
    "malformed optim_args value": ("train.py", ["--optim_args", "beta2=lots"], ["beta2", "lots"]),
    "optim_args out of range": ("train.py", ["--optim_args", "beta2=2"], ["beta2", "2"]),
    "unknown optimizer": ("train.py", ["--optim", "adpot"], ["adpot", "adopt"]),
    "malformed number": ("train.py", ["--learning_rate", "fast"], ["learning_rate", "fast"]),
    "unknown argument": ("train.py", ["--max_step", "4"], ["max_step", "did you mean max_steps"]),
    "no config file": ("train.py", ["--config", "{}/nowhere.yaml"], ["nowhere.yaml", "stdlib.yaml"]),
    "unknown config key": ("train.py", ["{}/unknown_key.yaml"], ["unknown_key.yaml", "'n_layers'", "n_layer"]),
    "bad value in the config": ("train.py", ["{}/bad_value.yaml"], ["bad_value.yaml", "max_steps", "many"]),
    "list in the config": ("train.py", ["{}/list_value.yaml"], ["list_value.yaml", "max_steps"]),
    "config is a list": ("train.py", ["{}/a_list.yaml"], ["a_list.yaml", "list"]),
    "config is not YAML": ("train.py", ["{}/broken.yaml"], ["broken.yaml", "not valid YAML"]),
    "unknown scheduler": ("train.py", ["--lr_scheduler_type", "cosy"], ["cosy", "cosine"]),
    "unknown scheduler option": ("train.py", ["--lr_scheduler_kwargs", '{"min": 1}'], ["min"]),
    "unknown tracker": ("train.py", ["--report_to", "paper"], ["paper", "tensorboard"]),
    "heads do not divide": ("train.py", ["--n_head", "3"], ["n_embd=16", "n_head=3"]),
    "no text column": ("train.py", ["--text_column", "body"], ["'body'", "text, number", "--text_column"]),
    "column is no text": ("train.py", ["--text_column", "number"], ["'number'", "int64"]),
    "no data files": ("train.py", ["--data_files", "{}/nowhere.jsonl"], ["'json'", "nowhere.jsonl"]),
    "unknown data set": ("train.py", ["--dataset_name", "{}/nowhere"], ["nowhere"]),
    "too little text": ("train.py", ["--block_size", "100000"], ["block_size=100000", "tokens"]),
    "taken folder": ("train.py", ["--output_dir", "{}/taken"], ["taken", "--output_dir", "--resume_from_checkpoint"]),
    "taken folder, accelerate": ("train_accelerate.py", ["--output_dir", "{}/taken"], ["taken", "--output_dir"]),
    "another model": (
        "train.py",
        ["--resume_from_checkpoint", "{}/taken/checkpoint-20", "--n_embd", "32", "--n_layer", "2"],
        ["checkpoint-20", "n_embd is 16 there and 32 here", "n_layer is 1 there and 2 here"],
    ),
    "another kind of model": ("train.py", ["--resume_from_checkpoint", "{}/llama"], ["llama", "not a GPT-2"]),
    "no such checkpoint": ("train.py", ["--resume_from_checkpoint", "{}/checkpoint-7"], ["checkpoint-7", "last"]),
    "no checkpoint": ("train.py", ["--resume_from_checkpoint", "{}/cache"], ["cache", "not a complete checkpoint"]),
    "nothing to resume": ("train.py", ["--resume_from_checkpoint", "last"], ["no complete checkpoint", "out"]),
    "the other script's": (
        "train_accelerate.py",
        ["--resume_from_checkpoint", "{}/taken/checkpoint-20"],
        ["written by train.py"],
    ),
    "would be ignored": (
        "train_accelerate.py",
        ["--neftune_noise_alpha", "5", "--eval_strategy", "no", "--label_smoothing_factor", "0.1"],
        ["label_smoothing_factor, neftune_noise_alpha"],
    ),
    "another run's folder": (
        "train.py",
        ["--output_dir", "{}/taken", "--resume_from_checkpoint", "{}/llama"],
        ["taken", "holds another run", "llama"],
    ),
    "backend that cannot run": (
        "train.py",
        ["--optim_args", "backend=foreach, capturable=true"],
        ["backend='foreach'", "capturable=True", "'reference'"],
    ),
    "empty data": ("train.py", ["--data_files", "{}/empty.jsonl"], ["'json'", "cannot be loaded"]),
    "folder in a file": (
        "train.py",
        ["--output_dir", "{}/toy.jsonl/x", "--cache_dir", "{}/never"],
        ["toy.jsonl/x", "cannot be written"],
    ),
    "never saved": ("train_accelerate.py", ["--save_steps", "0"], ["save_steps must be above 0", "0"]),
    "unknown strategy": ("train_accelerate.py", ["--save_strategy", "epoch"], ["save_strategy", "epoch"]),
}


@pytest.fixture(scope="module")
def bad_folder(toy: Path) -> Path:
    """The toy's folder, with a finished run in taken/ and configs that are wrong."""
    folder = toy.parent
    assert call("train.py", toy, "--output_dir", folder / "taken", "--max_steps", 20).code == 0
    shutil.copytree(folder / "taken" / "checkpoint-20", folder / "llama")
    config = json.loads((folder / "llama" / "config.json").read_text())
    (folder / "llama" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    mark = json.loads((folder / "llama" / "complete.json").read_text())
    mark["files"]["config.json"] = (folder / "llama" / "config.json").stat().st_size
    (folder / "llama" / "complete.json").write_text(json.dumps(mark))
    (folder / "empty.jsonl").touch()
    (folder / "unknown_key.yaml").write_text("n_layers: 2\n")
    (folder / "bad_value.yaml").write_text("max_steps: many\n")
    (folder / "list_value.yaml").write_text("max_steps: [1, 2]\n")
    (folder / "a_list.yaml").write_text("- max_steps\n")
    (folder / "broken.yaml").write_text("max_steps: [1\nn_layer: }\n")
    return folder


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_touches_nothing(case: str, bad_folder: Path) -> None:
    script, template, expected = BAD_INPUT[case]
    argv = [part.replace("{}", str(bad_folder)) for part in template]
    if not argv[0].endswith(".yaml") and argv[0] != "--config":
        argv.insert(0, str(bad_folder / "toy.yaml"))
    if "--output_dir" not in argv:
        argv += ["--output_dir", str(bad_folder / "out")]
    before = snapshot(bad_folder / "taken")
    result = call(script, *argv)
    assert result.code == 2, (result.code, result.err)
    assert result.last_error.startswith(f"{script}: error: "), result.err
    assert "Traceback" not in result.err
    for text in expected:
        assert text in result.last_error, result.last_error
    assert snapshot(bad_folder / "taken") == before
    assert not (bad_folder / "out").exists()
    assert not (bad_folder / "never").exists(), "data was prepared first"


# ----- configurations -----

OPTIMIZER_LINES = {"optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"}
TWINS = sorted(CONFIGS.glob("*_adamw.yaml"))


def test_every_recipe_has_a_twin() -> None:
    recipes = {path.stem for path in CONFIGS.glob("*.yaml")} - {path.stem for path in TWINS}
    assert {"stdlib", "gpt2_124m", "gpt2_124m_small_batch"} <= recipes
    assert {f"{name}_adamw" for name in recipes} == {path.stem for path in TWINS}


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_twins_differ_in_the_optimizer_alone(twin: Path) -> None:
    ours = yaml.safe_load((CONFIGS / f"{twin.stem.removesuffix('_adamw')}.yaml").read_text())
    theirs = yaml.safe_load(twin.read_text())
    differ = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert "optim" in differ
    assert differ <= OPTIMIZER_LINES, differ
    assert ours["optim"] == "adopt"
    assert theirs["optim"].startswith("adamw_torch")


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_parses_and_its_arithmetic_holds(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["--bf16", "false"]  # refused where there is no GPU for it
    args = settings.parse([str(config), *overrides], "test").training
    text = config.read_text()
    line = next(line for line in text.splitlines() if "Effective batch" in line)
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    for devices in (1, 8):
        if f"= {per_step * devices} sequences" in line:
            assert f"{args.per_device_train_batch_size} per device x {args.gradient_accumulation_steps} accum" in line
            return
    pytest.fail(f"{line} does not say {per_step} sequences times the devices")


def test_the_paper_settings() -> None:
    for name, sequences in (("gpt2_124m", 480), ("gpt2_124m_small_batch", 96)):
        recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * 8 == sequences
        assert float(recipe["learning_rate"]) == 6e-4
        assert recipe["lr_scheduler_kwargs"] == {"min_lr": 6e-5}
        assert (recipe["warmup_steps"], recipe["weight_decay"], recipe["max_grad_norm"]) == (2000, 0.1, 1.0)
        assert recipe["bf16"] is True
        assert recipe["block_size"] == 1024


def test_every_refused_field_exists() -> None:
    """train_accelerate.py's list of fields names real ones; a renamed field must not drop out of it unnoticed."""
    import dataclasses

    honoured = train_accelerate.HONOURED
    assert honoured <= {field.name for field in dataclasses.fields(TrainingArguments)}
