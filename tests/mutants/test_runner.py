"""The runner on a tree of its own: what is killed, what survives, and what cannot be judged."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.__main__ import ROOT, report
from tests.mutants.mutant import Mutant, NotApplicableError, apply, check
from tests.mutants.runner import KILLED, STALE, SURVIVED, Result

SOURCE = """
def double(x):
    return 2 * x


def wait():
    return 0
"""
TESTS = """
import os
import time
from pathlib import Path

import pytest
from adopt_hf.part import double, wait


def test_two():
    assert double(2) == 4


def test_wait():
    time.sleep(wait())


def test_signal():
    if double(1) == 3:
        os.abort()


@pytest.mark.skip(reason="nothing is noticed")
def test_skipped():
    assert double(3) == 6
"""
# name: new text instead of "2 * x" or "return 0", tests, verdict
MUTANTS = {
    "dies": ("return 2 * x", "return 3 * x", "test_part.py", "killed"),
    "lives": ("return 2 * x", "return x * x", "test_part.py", "survived"),  # 2 * 2 is 2 + 2 is 2 ** 2
    "aborts": ("return 2 * x", "return 3 * x", "test_part.py::test_signal", "killed"),
    "waits": ("return 0", "return 600", "test_part.py::test_wait", "timed out"),
    "twice": ("return", "raise", "test_part.py", "does not apply"),
    "gone": ("return 5 * x", "return x", "test_part.py", "does not apply"),
    "syntax": ("return 2 * x", "return 2 *", "test_part.py", "tests do not run"),
}


def tree(root: Path) -> Path:
    (root / "adopt_hf").mkdir(parents=True)
    (root / "tests").mkdir()
    (root / "adopt_hf" / "__init__.py").touch()
    (root / "adopt_hf" / "part.py").write_text(SOURCE, encoding="utf-8")
    (root / "tests" / "test_part.py").write_text(TESTS, encoding="utf-8")
    (root / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n', encoding="utf-8")
    return root


def run(root: Path, mutants: list[Mutant], limit: float) -> dict[str, Any]:
    """In a process of its own: the runner forks, which a process with threads should not do."""
    code = f"""
    import json, sys
    from pathlib import Path
    sys.path.insert(0, {str(ROOT)!r})
    from tests.mutants import runner
    from tests.mutants.mutant import Mutant
    runner.IMPORTED = ()
    mutants = [Mutant(*values[:4], tuple(values[4]), values[5]) for values in json.loads(sys.argv[1])]
    try:
        found = {{r.mutant.name: [r.verdict, r.said] for r in runner.run(Path(sys.argv[2]), mutants, {limit}, jobs=2)}}
    except runner.BaselineError as error:
        found = {{"baseline": str(error)}}
    print(json.dumps(found))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), json.dumps(mutants), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_verdicts(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    mutants = [
        Mutant(name, "adopt_hf/part.py", old, new, (f"tests/{tests}",), "planted")
        for name, (old, new, tests, _) in MUTANTS.items()
    ]
    found = run(root, mutants, limit=60)
    assert {name: verdict for name, (verdict, _) in found.items()} == {n: m[3] for n, m in MUTANTS.items()}
    assert found["dies"][1] == "tests/test_part.py::test_two"
    assert found["twice"][1] == "the old text stands 2 times in adopt_hf/part.py, it must stand there once"
    assert (root / "adopt_hf" / "part.py").read_text(encoding="utf-8") == SOURCE  # only copies are changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ("tests/test_part.py::test_skipped", "tests do not run: "),
        ("tests/test_part.py::test_missing", "tests do not run: pytest ended with 4"),
        ("tests/test_fails.py", "killed: tests/test_fails.py::test_false"),
    ],
)
def test_tests_that_do_not_pass_without_a_mutant_judge_nothing(tests: str, said: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    (root / "tests" / "test_fails.py").write_text("def test_false():\n    assert False\n", encoding="utf-8")
    found = run(root, [Mutant("any", "adopt_hf/part.py", "2 * x", "3 * x", (tests,), "planted")], limit=60)
    assert found["baseline"].startswith(f"without any mutant: pytest {tests}: {said}")


def test_a_missing_file_and_the_same_text_do_not_apply(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree")
    for file, new in (("adopt_hf/none.py", "3 * x"), ("adopt_hf/part.py", "2 * x")):
        with pytest.raises(NotApplicableError):
            apply(Mutant("any", file, "2 * x", new, ("tests",), "planted"), root)


def test_names_differ_and_tests_are_named() -> None:
    one = Mutant("one", "file", "old", "new", ("tests",), "planted")
    check([one])
    with pytest.raises(ValueError, match="names of mutants must differ, these do not: one"):
        check([one, one])
    with pytest.raises(ValueError, match="a mutant must name tests, these have none: one"):
        check([one._replace(tests=())])


def test_the_report_names_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    mutant = Mutant("one", "file.py", "old", "new", ("tests",), "users would suffer")
    assert report([Result(mutant, KILLED, 1.0, "a test")], 2.0) == 0
    assert "1 of 1 mutants die (100 %)" in capsys.readouterr().out
    assert report([Result(mutant, v, 1.0, "") for v in (KILLED, SURVIVED, STALE)], 2.0) == 1
    said = capsys.readouterr().out
    assert "1 of 3 mutants die (33 %)" in said
    assert said.count("file.py: users would suffer") == 2
