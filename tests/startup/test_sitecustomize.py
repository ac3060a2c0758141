"""A Python that starts with `adopt_hf/startup` on its path:

- it is as without the folder until it imports transformers: modules, sys.path, another sitecustomize;
- then it knows the names, in every order of imports (real transformers), and only the names are added at first;
- a Python without adopt_hf goes on in silence, one with a broken adopt_hf says so, one with another version fails.

Trees of processes: tests/commands/test_run_command.py. The .pth: tests/core/test_wheel.py.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import adopt_hf
from adopt_hf.commands import run
from tests.support.processes import ROOT, python
from tests.support.processes import run as start

VERSION = adopt_hf.__version__
ARGUMENTS, ENGINE = "transformers.training_args", "deepspeed.runtime.engine"
# A package of a test's own instead of transformers or DeepSpeed: importing them takes a second or more.
USER = {
    "transformers/__init__.py": "",
    "transformers/training_args.py": "import sys\nprint('adopt_hf' in sys.modules)\n",
}
SEEN = "import json, sys; print(json.dumps([sorted(sys.modules), sys.path, sys.modules['sitecustomize'].__file__]))"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def path(*entries: object) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(map(str, entries))}


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder with another sitecustomize."""
    return write(tmp_path / "other", {"sitecustomize.py": "import sys\nsys.theirs = getattr(sys, 'theirs', 0) + 1\n"})


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has no packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python"


# -- until transformers is imported ------------------------------------------------------------------------------------


def test_a_process_without_transformers_pays_for_one_small_module(other: Path) -> None:
    """The bound on the time at the start, by what is imported: our file, and nothing that was not in memory."""
    plain, *_ = json.loads(python("-c", SEEN, env=path(other)))
    ours, *_ = json.loads(python("-c", SEEN, env=path(run.STARTUP, other)))
    assert ours == plain
    assert not {"torch", "transformers", "adopt_hf", "importlib.metadata", "logging"} & set(ours)


def test_another_sitecustomize_is_imported_as_without_ours(other: Path) -> None:
    plain = json.loads(python("-c", SEEN, env=path(other, ROOT)))
    ours = json.loads(python("-c", SEEN, env=path(run.STARTUP, other, ROOT)))
    assert ours == plain
    assert Path(ours[2]) == other / "sitecustomize.py"
    assert python("-c", "import sys; print(sys.theirs)", env=path(run.STARTUP, other)) == "1\n"


def test_without_another_one_ours_stays(bare: Path) -> None:
    out = subprocess.check_output([bare, "-c", SEEN], env=path(run.STARTUP), text=True)
    assert json.loads(out)[2] == f"{run.STARTUP}/sitecustomize.py"
    assert run.STARTUP not in json.loads(out)[1]


@pytest.mark.parametrize(
    "fails", ["1/0", "import nowhere_to_be_found", "raise ImportError('no')", "raise SystemExit(3)"]
)
def test_another_sitecustomize_fails_as_without_ours(fails: str, other: Path) -> None:
    write(other, {"sitecustomize.py": fails})
    plain, ours = (start("-c", "print(1)", env=path(*entries)) for entries in ((other,), (run.STARTUP, other)))
    assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
    assert ours.stderr.splitlines()[-1:] == plain.stderr.splitlines()[-1:]
    assert fails == "raise SystemExit(3)" or plain.stderr


def test_two_copies_are_one(other: Path, tmp_path: Path) -> None:
    """Of two versions, or of one that is reached by two names: one hook, that of the first copy."""
    (tmp_path / "link").symlink_to(run.STARTUP)
    code = "import sys; print(sum(hasattr(f, 'adopt_hf_at_startup') for f in sys.meta_path), sys.theirs)"
    assert python("-c", code, env=path(run.STARTUP, tmp_path / "link", other)) == "1 1\n"


@pytest.mark.parametrize(("value", "is_right"), [("1", True), ("0", True), ("", True), ("yes", False)])
def test_a_value_that_means_nothing_is_named(value: str, is_right: bool) -> None:
    done = start("-c", "print(1)", env=path(run.STARTUP) | {"ADOPT_HF_REGISTER": value})
    assert done.stdout == "1\n"
    assert ("ADOPT_HF_REGISTER must be 1 or 0, got 'yes'" in done.stderr) is not is_right


# -- when it is --------------------------------------------------------------------------------------------------------

ORDERS = {
    "trainer_callback": "from transformers.trainer_callback import TrainerCallback",  # training_args ends inside of it
    "adopt_hf": "import adopt_hf",
    "a probe": "import importlib.util; importlib.util.find_spec('transformers.training_args')",
    "adopt_hf is imported again": """
import adopt_hf
for name in [name for name in sys.modules if name.split(".")[0] == "adopt_hf"]:
    del sys.modules[name]
""",
}
KNOWN = """
import sys
{first}
from transformers import HfArgumentParser, TrainingArguments
assert "transformers.trainer" not in sys.modules
args, = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
    ["--output_dir", "x", "--use_cpu", "--optim", "adopt", "--report_to", "none"]
)
from transformers import Trainer
import adopt_hf
assert Trainer.get_optimizer_cls_and_kwargs(args)[0] is adopt_hf.ADOPTW
assert [f for f in sys.meta_path if getattr(f, "adopt_hf_waits_for", "") == "transformers.trainer"] != []
print("fine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_orders(order: str) -> None:
    assert python("-c", KNOWN.format(first=ORDERS[order]), env=path(run.STARTUP, ROOT)).endswith("fine\n")


def test_only_the_names_are_added_with_the_arguments() -> None:
    """Behind finders of others, too: importlib has asked the first ones when the hooks of adopt_hf come before them."""
    code = f"""
import sys, accelerate
sys.meta_path[:0] = 9 * [type("Nothing", (), {{"find_spec": staticmethod(lambda *_: None)}})]
assert "adopt_hf" not in sys.modules                                  # accelerate has looked for DeepSpeed
import {ARGUMENTS} as arguments
print(arguments.OptimizerNames("adopt").value, sorted({{"transformers.trainer", "deepspeed"}} & set(sys.modules)))
"""
    assert python("-c", code, env=path(run.STARTUP, ROOT)) == "adopt []\n"


@pytest.mark.parametrize("user", [ARGUMENTS, ENGINE])
def test_both_users_bring_adopt(user: str, tmp_path: Path) -> None:
    """DeepSpeed takes ADOPT from a config, in a loop without transformers."""
    package = user.split(".")[0]
    write(tmp_path, {f"{package}/__init__.py": "", f"{package}/runtime/__init__.py": ""})
    write(tmp_path, {f"{user.replace('.', '/')}.py": "import sys\nprint('adopt_hf' in sys.modules)\n"})
    code = f"import sys, {package}; print('adopt_hf' in sys.modules); import {user}"
    assert python("-c", code, cwd=tmp_path, env=path(run.STARTUP, ROOT)).splitlines()[:2] == ["False", "True"]


# -- other Pythons -----------------------------------------------------------------------------------------------------


def imports(python: Path | str, entries: list[Path], first: str = "pass") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{first}\nimport {ARGUMENTS}\nprint('went on')"
    environment = path(run.STARTUP, *entries)
    return subprocess.run(
        [python, "-c", code], cwd=entries[0], env=environment, capture_output=True, text=True, check=False
    )


def test_without_adopt_hf_nothing_happens(bare: Path, tmp_path: Path) -> None:
    done = imports(bare, [write(tmp_path, USER)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\nwent on\n", "")


@pytest.mark.parametrize("error", ["ImportError('no torch')", "OSError('libtorch.so: cut off')"])
def test_where_it_cannot_be_imported_a_warning_says_why(error: str, bare: Path, tmp_path: Path) -> None:
    done = imports(bare, [write(tmp_path, USER | {"adopt_hf/__init__.py": f"raise {error}\n"})])
    assert (done.returncode, done.stdout) == (0, "False\nwent on\n")
    kind, text = error.rstrip(")").split("(")
    (line,) = done.stderr.splitlines()
    assert line.startswith("optim='adopt' is unknown in this process: adopt_hf is installed for ")
    assert f"({kind}: {text[1:-1]})" in line


@pytest.mark.parametrize("first", ["pass", "import adopt_hf"])
def test_another_version_is_an_error_that_names_both(first: str, bare: Path, tmp_path: Path) -> None:
    done = imports(bare, [write(tmp_path, USER | {"adopt_hf/__init__.py": "__version__ = '0.0.7'\n"})], first)
    assert done.returncode == 1
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith(
        f"ImportError: `adopt-hf run` was called with adopt_hf {VERSION} ({ROOT / 'adopt_hf'}), and "
    )
    assert f"has adopt_hf 0.0.7 ({tmp_path / 'adopt_hf'})" in line
    assert f"write `{bare} -m adopt_hf run COMMAND`" in line


def test_another_copy_of_the_same_version_is_fine(bare: Path, tmp_path: Path) -> None:
    done = imports(bare, [write(tmp_path, USER | {"adopt_hf/__init__.py": f"__version__ = {VERSION!r}\n"})])
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nwent on\n", "")


def test_a_real_transformers_passes_the_error_on(tmp_path: Path) -> None:
    """Its lazy modules turn some errors into others, which say nothing."""
    write(tmp_path, {"adopt_hf/__init__.py": "__version__ = '0.0.7'\n"})
    done = start("-c", "from transformers import TrainingArguments", cwd=tmp_path, env=path(run.STARTUP, tmp_path))
    assert done.returncode == 1
    assert "has adopt_hf 0.0.7" in done.stderr.splitlines()[-1]
    assert sys.executable in done.stderr.splitlines()[-1]
