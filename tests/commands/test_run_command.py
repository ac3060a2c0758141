"""`adopt-hf run COMMAND`: any command, and every Python that it starts knows the names.

- arguments, exit code, signals and standard input are what they are without us;
- a script, a command and a module are told apart, and what is none of them is refused with one line;
- children have the names: of a shell, of a script, of a module, spawned ones, and two processes of a launcher that
  train with the real Trainer.

TRL's command: tests/integrations/transformers/test_trl_command.py. The hook itself: tests/startup.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from adopt_hf import commands
from adopt_hf.commands import run
from tests.support.processes import PORT, SCRIPTS, python, torchrun
from tests.support.processes import run as start

RUN = ["-m", "adopt_hf", "run"]
HAS_NAMES = "import sys; print(any(hasattr(finder, 'adopt_hf_at_startup') for finder in sys.meta_path), flush=True)"
posix = pytest.mark.skipif(os.name != "posix", reason="shells and signals")


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of exec, which are not made."""
    calls: list[Any] = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return calls


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["adopt-hf", "run", *words])
    commands.main()


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


# -- a command as a shell sees it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--optim", "adopt", "-m", "x", "--", "--help", "-h", "", "a b", "--version"],
        ["'", '"', "$HOME", "*", "\\", "a\nb", "ü", "`x`"],
    ],
    ids=str,
)
def test_arguments_are_passed_as_they_are(
    args: list[str], executed: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = executable(tmp_path / "bin" / "tool")
    monkeypatch.setenv("PATH", str(path.parent))
    for words in (["tool"], ["--", "tool"]):
        call(monkeypatch, *words, *args)
        assert executed.pop() == (str(path), ["tool", *args])


@posix
def test_the_process_becomes_the_command(tmp_path: Path) -> None:
    """Exit code, standard input, a name that begins with a dash, and the signals that Python ignores for itself."""
    tool = executable(tmp_path / "bin" / "-tool", '#!/bin/sh\ncat; echo "$@"; kill -PIPE $$; echo alive; exit 7\n')
    environment = {"PATH": os.pathsep.join([str(tool.parent), os.environ["PATH"]])}
    words = [["sh", "-c", "cat; exit 7"], ["--", "-tool", "a b"]]
    exits, dies = (start(*RUN, *w, cwd=tmp_path, env=environment, stdin="in ") for w in words)
    assert (exits.returncode, exits.stdout, exits.stderr) == (7, "in ", "")
    assert (dies.returncode, dies.stdout, dies.stderr) == (-signal.SIGPIPE, "in a b\n", "")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command(number: signal.Signals, tmp_path: Path) -> None:
    """The process that was started is the command: a launcher or SLURM kills no wrapper around it."""
    trap = f"trap 'echo got it; exit 5' {number.name.removeprefix('SIG')}; echo $$; while :; do sleep 0.05; done"
    command = [sys.executable, *RUN, "sh", "-c", trap]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(number)
        assert process.stdout.read() == "got it\n"
    assert process.returncode == 5


def test_ours_is_in_front_of_pythonpath_once(executed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {"": [], "a": ["a"], f"a{os.pathsep}{os.pathsep}b": ["a", "", "b"], run.STARTUP: []}
    for before, after in entries.items():
        monkeypatch.setenv("PYTHONPATH", before)
        call(monkeypatch, sys.executable)
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [run.STARTUP, *after]
    monkeypatch.delenv("PYTHONPATH")
    call(monkeypatch, sys.executable)
    assert os.environ["PYTHONPATH"] == run.STARTUP


# -- scripts, commands, modules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("script.py", "script"),
        ("plain", "script"),  # a file that cannot be executed, and no command has its name
        ("marked", "script"),  # it can, and a shell would not find it
        ("./marked.py", "script"),
        ("./marked", "command"),
        ("./plain", "script"),
        ("tool", "command"),  # beside a folder of the same name
        ("onpath.py", "command"),
        ("missing.py", "script"),  # whose error says so
        (".", "script"),
        ("missing", "command"),
        ("bin/missing", "command"),
    ],
)
def test_what_is_run_how(word: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("script.py", "plain"):
        (tmp_path / name).write_text("")
    for name in ("marked", "marked.py", "bin/tool", "bin/onpath.py", "bin/script.py"):
        executable(tmp_path / name)
    (tmp_path / "tool").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYTHONPATH", "")
    calls = []
    monkeypatch.setattr(run, "run_script", lambda *_, error: calls.append("script"))
    monkeypatch.setattr(run, "run_command", lambda *_, error: calls.append("command"))
    call(monkeypatch, word)
    assert calls == [kind]


class Refused(Exception):  # noqa: N818
    pass


def refuse(message: str) -> NoReturn:
    raise Refused(message)


@pytest.mark.parametrize("name", ["missing", "missing\nline", "./missing", "folder/missing", ""])
def test_a_command_that_does_not_exist_is_refused(name: str, executed: list[Any]) -> None:
    with pytest.raises(Refused, match="is neither a command on the PATH nor a file; a module needs -m") as error:
        run.run_command(name, [], refuse)
    assert str(error.value).startswith(repr(name))
    assert len(str(error.value).splitlines()) == 1
    assert executed == []


@posix
@pytest.mark.parametrize(
    ("text", "reason"), [("echo\n", "Exec format error"), ("#!/nowhere\n", "No such file or directory")]
)
def test_a_command_that_cannot_be_executed_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    tool = executable(tmp_path / "tool", text)
    done = start(*RUN, "./tool", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    usage, message = done.stderr.splitlines()
    assert usage == "usage: python -m adopt_hf run [-m | --] WHAT [ARGS ...]"
    assert (
        f"the command './{tool.name}' cannot be executed ({reason}); a script without #! needs a name in .py" in message
    )


@pytest.mark.parametrize("program", ["/somewhere/adopt-hf", "/somewhere/adopt_hf/__main__.py"])
def test_the_usage_is_that_of_what_was_called(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "run"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    name = "adopt-hf" if program.endswith("adopt-hf") else "python -m adopt_hf"
    assert capsys.readouterr().err.startswith(f"usage: {name} run [-m | --] WHAT [ARGS ...]\n{name} run: error: ")


# -- children ----------------------------------------------------------------------------------------------------------


@posix
def test_every_python_below_has_the_hook(tmp_path: Path) -> None:
    """A shell that starts a Python that starts a Python; the children of a script and of a module."""
    (tmp_path / "has.py").write_text(HAS_NAMES)
    (tmp_path / "script.py").write_text(
        "import subprocess, sys\n"
        "if __name__ == '__main__':\n"
        "    subprocess.run([sys.executable, 'has.py'], check=True)\n"
    )
    trees = {
        "command": ["sh", "-c", f"'{sys.executable}' has.py && '{sys.executable}' script.py"],
        "script": ["script.py"],
        "module": ["-m", "script"],
    }
    said = {name: python(*RUN, *words, cwd=tmp_path).splitlines() for name, words in trees.items()}
    assert said == {"command": ["True", "True"], "script": ["True"], "module": ["True"]}


SPAWNED = """
import multiprocessing, sys


def show(queue):
    from transformers import TrainingArguments
    arguments = TrainingArguments("x", optim="adopt", use_cpu=True, report_to="none")
    queue.put(arguments.optim.value)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=show, args=(queue,))
    child.start()
    print(queue.get(timeout=120), flush=True)
    child.join()
    assert "adopt_hf" not in sys.modules
"""


@pytest.mark.slow
def test_a_spawned_process_knows_the_names(tmp_path: Path) -> None:
    """The parent has imported neither transformers nor adopt_hf, and hands over nothing that would."""
    (tmp_path / "script.py").write_text(SPAWNED)
    assert python(*RUN, sys.executable, "script.py", cwd=tmp_path) == "adopt\n"


LAUNCHED = {
    "the command torchrun": [Path(sys.executable).with_name("torchrun"), *torchrun(2)[2:]],
    "torchrun as a module": torchrun(2),
    "accelerate as a module": [
        *("-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--multi_gpu", "--num_processes", "2", "--main_process_port", PORT),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launcher_below_us_trains_adopt_in_two_processes(name: str, tmp_path: Path) -> None:
    script = (SCRIPTS / "train_clm.py").read_text()
    assert "adopt" not in script, "the script is not to know"
    (tmp_path / "script.py").write_text(script.replace("os._exit(0)", "sys.exit()"))  # the hook writes at the end
    line = "--output_dir out --max_steps 3 --per_device_train_batch_size 4 --use_cpu --report_to none"
    line += " --save_strategy no --disable_tqdm true --weight_decay 0.1 --optim adopt --optim_args clip_exp=0.3,lr=0.01"
    environment = {"PYTHONPATH": str(SCRIPTS / "watched"), "STEPPED": str(tmp_path)}
    python(*RUN, *LAUNCHED[name], "script.py", *line.split(), cwd=tmp_path, env=environment)
    ranks = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert len(ranks) == 2
    for ((optimizer, steps, groups),) in ranks:
        assert (optimizer, steps) == ("adopt_hf.optimizer.ADOPTW", 3)
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert {group["clip_exp"] for group in groups} == {0.3}
