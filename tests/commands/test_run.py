"""`python -m adopt_hf run`: an unmodified script cannot tell it from `python`, but for the name being there:

- exit codes, output, tracebacks, sys.argv and `__main__` are compared with those of plain `python` (table);
- what cannot be started is refused with one line;
- a real one, in the style of run_clm.py, behind accelerate and torchrun, with the number of processes asserted from
  inside. (TRL's scripts: test_trl.py.)
"""

import json
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from adopt_hf.commands import run
from tests.support.processes import PORT, SCRIPTS, WITHOUT_TRANSFORMERS, Finished, python, torchrun
from tests.support.processes import run as start

UTF8 = {"PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Case:
    """A script, and what `python` makes of it (so that the comparison is of what it was meant to be)."""

    files: dict[str, str]
    exit_code: int
    says: str  # on stdout or stderr
    args: tuple[str, ...] = ("script.py",)
    folder: str = "."
    links: dict[str, str] = field(default_factory=dict)


FAIL = "def fail():\n    raise RuntimeError('no ünicode\\nno cry')\n"
PACKAGE = {
    "package/__init__.py": "print('package')\n",
    "package/helper.py": FAIL,
    "package/__main__.py": "import sys\nfrom . import helper\n"
    "print(__name__, __package__, __spec__.name, sys.argv[1:])\n",
    "package/tool.py": "import sys\nfrom .helper import fail\n"
    "print(__name__, __package__, __spec__.name, __file__, sys.argv, sys.path[0])\nfail()\n",
}
CASES = {
    "ends well": Case({"script.py": "print('out')\n"}, 0, "out"),
    "sys.exit()": Case({"script.py": "import sys\nprint('out')\nsys.exit()\n"}, 0, "out"),
    "sys.exit(3)": Case({"script.py": "import sys\nsys.stderr.write('err')\nsys.exit(3)\n"}, 3, "err"),
    "sys.exit(text)": Case({"script.py": "import sys\nsys.exit('no way')\n"}, 1, "no way\n"),
    "SystemExit in a try": Case({"script.py": "try:\n    1/0\nfinally:\n    raise SystemExit(4)\n"}, 4, ""),
    "exception": Case(
        {
            "script.py": "import sibling\ndef f():\n    sibling.fail()\nif __name__ == '__main__':\n    f()\n",
            "sibling.py": FAIL,
        },
        1,
        "RuntimeError: no ünicode\nno cry",
    ),
    "chained exception": Case(
        {
            "script.py": "from sibling import fail\ntry:\n    fail()\nexcept RuntimeError as error:\n"
            "    try:\n        {}['key']\n    except KeyError:\n        raise ValueError('top') from error\n",
            "sibling.py": FAIL,
        },
        1,
        "The above exception was the direct cause of the following exception",
    ),
    "syntax error": Case({"script.py": "x = 1\nif x:\nprint(x)\n"}, 1, "IndentationError"),
    "syntax error in a sibling": Case({"script.py": "import sibling\n", "sibling.py": "def f(:\n"}, 1, "SyntaxError"),
    "KeyboardInterrupt": Case(
        {"script.py": "print('out', flush=True)\nraise KeyboardInterrupt\n"}, -signal.SIGINT, "KeyboardInterrupt"
    ),
    "its own excepthook": Case(
        {
            "script.py": "import sys, traceback\ndef hook(kind, value, tb):\n"
            "    print('hook', kind.__name__, value, [f.name for f in traceback.extract_tb(tb)])\n"
            "sys.excepthook = hook\ndef f():\n    raise ValueError('x')\nf()\n"
        },
        1,
        "hook ValueError x ['<module>', 'f']",
    ),
    "atexit": Case(
        {"script.py": "import atexit\natexit.register(lambda: print('at exit', __name__))\n1/0\n"},
        1,
        "at exit __main__",
    ),
    "arguments": Case(
        {"script.py": "import sys\nprint(sys.argv)\n"},
        0,
        "['script.py', '--optim', 'adopt', '-m', 'x', '--', '--help', '-h', '', 'a b', '--version']",
        ("script.py", "--optim", "adopt", "-m", "x", "--", "--help", "-h", "", "a b", "--version"),
    ),
    "argparse": Case(
        {"script.py": "import argparse\nargparse.ArgumentParser().parse_args()\n"},
        0,
        "usage: script.py [-h]",
        ("script.py", "--help"),
    ),
    "another folder": Case(
        {
            "here/x.txt": "",
            "there/script.py": "import sys, sibling\nprint(sys.argv[0], __file__, sys.path[0])\nsibling.fail()\n",
            "there/sibling.py": FAIL,
        },
        1,
        "../there/script.py",
        ("../there/script.py",),
        "here",
    ),
    "a link": Case(
        {"there/real.py": "import sys, sibling\nprint(__file__, sys.path[0])\n", "there/sibling.py": ""},
        0,
        "there",
        links={"script.py": "there/real.py"},
    ),
    "another encoding": Case({"script.py": "# -*- coding: latin-1 -*-\nprint(len('ü'))\n"}, 0, "2\n"),
    "-m package": Case(PACKAGE, 0, "__main__ package package.__main__ ['-m', 'x']", ("-m", "package", "-m", "x")),
    "-m package.module": Case(PACKAGE, 1, "__main__ package package.tool", ("-m", "package.tool", "--x", "1")),
    "-m module": Case(
        {"script.py": "import sys\nprint(__name__, __package__ == '', __spec__.name, sys.argv)\n"},
        0,
        "__main__ True script",
        ("-m", "script", "--help"),
    ),
    "-m needs something that is not there": Case(
        {"package/__init__.py": "import nowhere_to_be_found\n", "package/tool.py": ""},
        1,
        "No module named 'nowhere_to_be_found'",
        ("-m", "package.tool"),
    ),
}


def compared(done: Finished) -> tuple[int, str, str]:
    """Return the parts that must be the same. `python -m` shows frames of runpy, where the script has none."""
    machinery = r'  File "(?:<frozen [\w.]+>|[^"]*/(?:runpy|importlib/util)\.py)", line .*\n(?:    .*\n)*'
    return done.returncode, done.stdout, re.sub(machinery, "", done.stderr)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Finished, Finished]]:
    """Every case, as run by `python` and by `python -m adopt_hf run`.

    Without transformers, which takes a second to be torn down at the end of each process.
    """
    found = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("case")
        for path, text in case.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        for path, target in case.links.items():
            (folder / path).symlink_to(target)
        options = {"cwd": folder / case.folder, "env": UTF8 | WITHOUT_TRANSFORMERS}
        ours = start("-m", "adopt_hf", "run", *case.args, modules=("adopt_hf",), own_end=True, **options)
        found[name] = start(*case.args, **options), ours
    return found


@pytest.mark.parametrize("name", CASES)
def test_same_as_python(name: str, both: dict[str, tuple[Finished, Finished]]) -> None:
    plain, ours = both[name]
    assert plain.returncode == CASES[name].exit_code, plain.stderr
    assert CASES[name].says in plain.stdout + plain.stderr
    assert compared(ours) == compared(plain)


def test_a_process_of_its_own_ends_as_python_does(tmp_path: Path) -> None:
    """The table above without its fork: one case that has all of it, output, traceback and death by signal.

    The Trainer is not imported for it: it imports torch._dynamo, with which python itself ends in exit code 1.
    """
    (tmp_path / "script.py").write_text("import sys\nprint(sys.argv)\nraise KeyboardInterrupt\n")
    plain = start("script.py", "-x", cwd=tmp_path)
    ours = start("-m", "adopt_hf", "run", "script.py", "-x", cwd=tmp_path)
    assert plain.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in plain.stderr
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_main_is_the_scripts(tmp_path: Path) -> None:
    """Everything that depends on `__main__`: its globals, pickling, sources, spawned and forked processes."""
    (tmp_path / "script.py").write_text((SCRIPTS / "report.py").read_text())
    (tmp_path / "sibling.py").write_text(
        "def state_of_main():\n    import __main__\n    return __main__.state, __main__.Point.__module__\n"
    )
    line = ("script.py", "--optim", "x")
    commands = line, ("-m", "adopt_hf", "run", *line)
    expected, seen = (json.loads(python(*c, cwd=tmp_path, env=WITHOUT_TRANSFORMERS)) for c in commands)
    assert expected["in child"] == "__mp_main__ __mp_main__ Point(x=1, y=None)"
    assert seen == expected


WORKERS = """
import multiprocessing
import sys

from torch.utils.data import DataLoader
from transformers import HfArgumentParser, TrainingArguments


class Rows:
    def __init__(self, args):
        self.args = args

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.args.optim.value


def show(args, queue):
    from transformers import Trainer
    queue.put("was handed " + Trainer.get_optimizer_cls_and_kwargs(args)[0].__qualname__)


if __name__ == "__main__":
    args, = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    print([optim for optims in DataLoader(Rows(args), num_workers=2, batch_size=2) for optim in optims])
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=show, args=(args, queue))
    child.start()
    child.join()
    print(child.exitcode, flush=True)
    print(queue.get(timeout=60))
"""


@pytest.mark.slow
def test_worker_processes_know_the_name(tmp_path: Path) -> None:
    """Processes that the script itself starts and hands the arguments to, forked or spawned."""
    (tmp_path / "script.py").write_text(WORKERS)
    line = ["--output_dir", "out", "--use_cpu", "--optim", "adopt"]
    done = start("-m", "adopt_hf", "run", "script.py", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        str(["adopt"] * 4),
        "0",
        "was handed ADOPTW",
    ], done.stderr


# -- refused -----------------------------------------------------------------------------------------------------------


class Refused(Exception):  # noqa: N818
    pass


def refuse(message: str) -> NoReturn:
    raise Refused(message)


@pytest.mark.parametrize(
    ("start_it", "name"),
    [
        (run.run_script, "missing.py"),
        (run.run_script, "missing\nline.py"),
        (run.run_script, "."),
        (run.run_module, "missing"),
        (run.run_module, "missing.module"),
        (run.run_module, "json.missing"),
        (run.run_module, "json.decoder.missing"),
        (run.run_module, "email"),  # a package without __main__
        (run.run_module, "math"),  # has no code
        (run.run_module, ".relative"),
    ],
)
def test_what_is_not_there_is_refused(start_it: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(run, "_execute", lambda *_: pytest.fail("was started"))
    with pytest.raises(Refused) as error:
        start_it(name, [], refuse)
    assert len(str(error.value).splitlines()) == 1
    assert repr(name)[1:-1] in str(error.value)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "missing.py"], "error: can't open file 'missing.py'"),
        (["run", "."], "error: '.' is a folder: write the name of the script in it, or -m and the name of a module"),
        (["run", "-m", "missing"], "error: no module named 'missing'"),
    ],
    ids=str,
)
def test_refusals_exit_with_2(args: list[str], says: str, tmp_path: Path) -> None:
    """argparse's usage, and one line."""
    done = start("-m", "adopt_hf", *args, cwd=tmp_path, env=WITHOUT_TRANSFORMERS, modules=("adopt_hf",))
    assert done.returncode == 2
    assert done.stdout == ""
    usage, message = done.stderr.splitlines()
    assert usage.startswith("usage: python -m adopt_hf")
    assert says in message


# -- real ones ---------------------------------------------------------------------------------------------------------

ACCELERATE = ["-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
ACCELERATE += ["--dynamo_backend", "no"]
LAUNCHED = {  # the launcher -> the processes that it must start
    "accelerate, one process": ([*ACCELERATE, "--cpu", "--num_processes", "1"], 1),
    # Without --cpu: with it, accelerate starts one process, whatever --num_processes says.
    "accelerate, two processes": ([*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", PORT], 2),
    "torchrun, two processes": (torchrun(2), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHED)
def test_behind_a_launcher(name: str, tmp_path: Path) -> None:
    launcher, world_size = LAUNCHED[name]
    script = (SCRIPTS / "train_clm.py").read_text()
    assert "adopt" not in script, "the script is not to know"
    (tmp_path / "script.py").write_text(script)
    line = "--output_dir out --n_layer 1 --max_steps 3 --per_device_train_batch_size 4 --use_cpu --report_to none"
    line += " --save_strategy no --disable_tqdm true --weight_decay 0.1 --optim adopt --optim_args clip_exp=0.3,lr=0.01"
    python(*launcher, "-m", "adopt_hf", "run", "script.py", *line.split(), cwd=tmp_path)

    ranks = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("rank*.json"))]
    assert len(ranks) == world_size
    assert len({rank["pid"] for rank in ranks}) == world_size
    for rank in ranks:
        assert rank["world_size"] == world_size
        assert rank["distributed_type"] == ("MULTI_CPU" if world_size == 2 else "NO")
        assert rank["backend"] == ("gloo" if world_size == 2 else None)
        assert rank["optim"] == "adopt"
        assert rank["optimizer"] == "adopt_hf.optimizer.ADOPTW"
        assert rank["steps"] == [3.0]
        assert [group["weight_decay"] for group in rank["groups"]] == [0.1, 0.0]
        assert [group["clip_exp"] for group in rank["groups"]] == [0.3, 0.3]
        assert [group["initial_lr"] for group in rank["groups"]] == [0.01, 0.01]
        assert rank["weights"] == ranks[0]["weights"]
