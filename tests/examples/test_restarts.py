"""A run that torchrun restarts continues by itself, in its own folder and in no other run's."""

import json
import logging
from pathlib import Path

import pytest
from transformers import TrainingArguments

from adopt_hf.integrations.checkpoints import MARK
from examples.shared import launch, restarts
from examples.shared.errors import InputError


@pytest.fixture(autouse=True)
def below_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(monkeypatch, "one", 0)


def attempt(monkeypatch: pytest.MonkeyPatch, agent: str, count: int) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", f"/tmp/torchelastic/{agent}/attempt_{count}/0/error.json")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))


def to_go_on_from(folder: Path, asked: str | None = None) -> Path | None:
    args = TrainingArguments(str(folder), use_cpu=True, report_to="none", resume_from_checkpoint=asked)
    return launch.to_go_on_from(args, ("checkpoint-*", "run.yaml"))


def begin(folder: Path) -> None:
    """Do what the first start of a run does before it trains."""
    assert to_go_on_from(folder) is None
    launch.take_folder(folder / "run.yaml", "", new=True)


def save(folder: Path, step: int, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    if complete:
        (checkpoint / MARK).write_text(json.dumps({"step": step, "files": {}}))
    return checkpoint


@pytest.mark.parametrize("asked", [None, "false", "last"])
@pytest.mark.parametrize("count", [0, 1])  # a machine that joins restarts all, and is not counted
def test_a_restart_continues_from_the_last_complete_checkpoint(
    count: int, asked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin(tmp_path / "out")
    newest = save(tmp_path / "out", 4)
    save(tmp_path / "out", 8, complete=False)
    attempt(monkeypatch, "one", count)
    caplog.set_level(logging.WARNING, "adopt_hf")
    assert to_go_on_from(tmp_path / "out", asked) == newest
    assert "checkpoint-8, which is incomplete" in caplog.text


def test_a_restart_without_one_begins_again_and_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    begin(out)
    for count in (1, 2):
        save(out, 4, complete=False)
        attempt(monkeypatch, "one", count)
        assert to_go_on_from(out) is None
        assert not out.exists()
        assert (tmp_path / f"out-start{count}" / "checkpoint-4").is_dir()
        assert f"it is now {out}-start{count}, and the run begins" in caplog.text
        launch.take_folder(out / "run.yaml", "", new=True)


def test_a_run_that_began_elsewhere_begins_there_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(tmp_path / "base", 20)
    begin(tmp_path / "out")
    attempt(monkeypatch, "one", 1)
    assert to_go_on_from(tmp_path / "out", str(base)) == base


def test_the_folder_of_another_launch_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart by another torchrun, after its first start was refused: that is no restart of this run."""
    out = tmp_path / "out"
    begin(out)
    save(out, 4)
    for count in (0, 1):
        attempt(monkeypatch, "two", count)
        with pytest.raises(InputError, match="holds another run"):
            to_go_on_from(out)
    assert to_go_on_from(out, "last") == out / "checkpoint-4"
    restarts.note(out)
    attempt(monkeypatch, "two", 2)
    assert to_go_on_from(out) == out / "checkpoint-4"


def test_one_of_two_launchers_that_is_left_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    begin(out)
    newest = save(out, 4)
    own = restarts.launcher()
    monkeypatch.setattr(restarts, "gather_object", lambda names: [*names, own])
    attempt(monkeypatch, "of a new machine", 0)
    assert to_go_on_from(out) == newest
    restarts.note(out)
    assert len(json.loads((out / restarts.LAUNCHERS).read_text())) == 2


@pytest.mark.parametrize("variable", [None, ""])
def test_without_torchrun_nothing_is_noted(
    variable: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    if variable is not None:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", variable)
    begin(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.yaml"]
    assert restarts.is_restart(tmp_path / "out") is False
