"""The command: bad input is one line and exit code 2, and a set that is killed goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from adopt_hf import commands
from tests.support.processes import environment

SCRIPTS = Path(__file__).parent / "scripts"
FAKE, TRAIN = str(SCRIPTS / "fake.py"), str(SCRIPTS / "train.py")
OPTIONS = ("--optims", "adopt,adamw_torch", "--lrs", "1e-2", "--seeds", "2")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Call the command in this process. Return its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["adopt-hf", "compare", *words])
        code: Any = 0
        try:
            commands.main()
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*OPTIONS, "python", "train.py"], "-- is missing in front of the command: write adopt-hf compare"),
        ([], "-- is missing"),
        ([*OPTIONS, "--"], "there is no command after --"),
        (["--optims", "adopt,adamv", "--lrs", "1e-3", "--", FAKE], "'adamv', which is no optimizer of transformers"),
        (["--lrs", "1e-3,fast", "--", FAKE], "--lrs has 'fast', which is no number"),
        (["--", FAKE], "--lrs is missing: write one learning rate or several"),
        (["--lrs", "1e-3", "--seeds", "0", "--", FAKE], "--seeds is '0': write a whole number above 0"),
        (["--lrs", "1e-3", "--jobs", "two", "--", FAKE], "--jobs is 'two'"),
        (["--lrs", "1e-3,1e-2", "--lr-sweep", "--", FAKE], "--lr-sweep picks five learning rates around one"),
        (["--lrs", "1e-3", "--", "no-such-command"], "is neither a command on the PATH nor a script"),
        (["--lrs", "1e-3", "--", "none.py"], "no such script"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, call: Any, tmp_path: Path) -> None:
    code, out, err = call(*words)
    assert code == 2
    assert out == ""
    assert err.startswith("adopt-hf compare: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_rich_is_asked_for(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else pytest.fail(name))
    code, _, err = call(*OPTIONS, "--", FAKE, "well")
    assert (code, err.count("\n")) == (2, 1)
    assert "its table needs the package rich, which is not installed: write pip install rich" in err


def test_a_script_without_a_trainer_leaves_nothing(call: Any, tmp_path: Path) -> None:
    code, _, err = call(*OPTIONS, "--output", "out", "--", FAKE, "print")
    assert code == 2
    assert "is no script of a Trainer" in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*") if path.name != "starts"] == ["out"]


def test_a_set_that_ends_well(call: Any, tmp_path: Path) -> None:
    code, out, _ = call(*OPTIONS, "--", FAKE, "well")
    folder = tmp_path / "runs" / "compare"
    assert code == 0
    assert "finished adopt_lr1e-2_seed0" in out
    assert out.endswith(f"{folder / 'report.html'}\n")
    found = json.loads((folder / "results.json").read_text())
    assert found["verdicts"][0]["kind"] == "lower"
    assert found["verdicts"][0]["sentence"] in out
    assert found["verdicts"][0]["sentence"] in (folder / "results.md").read_text()
    before = (folder / "starts").read_text()
    assert call(*OPTIONS, "--", FAKE, "well")[0] == 0
    assert (folder / "starts").read_text() == before
    code, _, err = call(*OPTIONS[:-1], "1", "--", FAKE, "well")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds another comparison: seeds is 2 there and 1 here; write another --output" in err
    code, _, err = call(*OPTIONS, "--", FAKE, "other")
    assert (code, "holds another comparison: command is " in err) == (2, True)
    assert json.loads((folder / "results.json").read_text())["runs"] == found["runs"]


def test_a_failed_run_is_exit_code_1(call: Any, tmp_path: Path) -> None:
    code, out, _ = call(*OPTIONS, "--output", "out", "--", FAKE, "fail")
    assert code == 1
    assert "failed adopt_lr1e-2_seed1 (exit code 3): ValueError: record 17 is empty" in out
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (failed,) = [run for run in found["runs"] if run["status"] == "failed"]
    assert failed["last_lines"] == ["reading data", "ValueError: record 17 is empty"]
    assert "record 17 is empty" in (tmp_path / "out" / "report.html").read_text()


def test_the_learning_rate_may_be_the_commands_own(call: Any, tmp_path: Path) -> None:
    code, _, err = call("--optims", "adopt", "--seeds", "1", "--", FAKE, "well", "--learning_rate", "5e-3")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "runs" / "compare" / "results.json").read_text())
    assert found["plan"]["lrs"] == [5e-3]


# ----- a real script -----


def arguments(output: Path, *more: str) -> list[str]:
    trainer = ["--max_steps", "30", "--logging_steps", "2", "--use_cpu", "--report_to", "none"]
    trainer += ["--disable_tqdm", "true", "--eval_strategy", "steps", "--eval_steps", "5", "--save_strategy", "no"]
    command = ["-m", "adopt_hf", "compare", *OPTIONS, "--output", str(output)]
    return [*command, "--", "accelerate", "launch", "--cpu", TRAIN, *trainer, *more]


def alive_below(output: Path) -> list[int]:
    """Return the processes that have the output folder among their words."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        below = any(word.startswith(str(output)) for word in words) and "compare" not in words
        if below and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.mark.slow
def test_a_real_script_killed_and_started_again(tmp_path: Path) -> None:
    """The killed set takes its runs with it. The next one goes on, and its results are those of a set at one go."""
    variables = environment({"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})
    output = tmp_path / "out"
    words = [sys.executable, *arguments(output, "--pause", "0.05")]
    with subprocess.Popen(words, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
        until = time.monotonic() + 300
        while len(list(output.glob("runs/*/done.json"))) < 1 or not list(output.glob("runs/*_seed0/seen-*.json")):
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        while not any(not (path.parent / "done.json").exists() for path in output.glob("runs/*/seen-*.json")):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert alive_below(output)
        first.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while alive_below(output):
        assert time.monotonic() < until, "a run has outlived its set"
        time.sleep(0.1)
    kept = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/done.json")}
    assert 1 <= len(kept) < 4
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found = json.loads((output / "results.json").read_text())
    assert (found["runs_finished"], found["metric"]) == (4, "eval_loss")
    assert all(run["steps"] == 30 and run["step_ms"] > 40 and run["peak_bytes"] > 2**26 for run in found["runs"])
    assert found["verdicts"][0]["sentence"] in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--how", "own optim"], "the script ignores --optim: "),
        (["--how", "own optimizer"], "the script ignores --optim: "),
        (["--how", "own folder"], "the script ignores --output_dir: "),
        (["--how", "no training"], "is no script of a Trainer"),
    ],
)
def test_real_scripts_that_cannot_be_compared(more: list[str], message: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = [sys.executable, *arguments(output, *more)]
    words[words.index("accelerate") : words.index(TRAIN)] = []
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert not output.exists()
