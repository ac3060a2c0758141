"""Apply mutants to copies of the tree, and run the tests that should kill them: `python -m tests.mutants --help`.

Each mutant has a copy of the tree and a process, forked from one that has imported torch and transformers but nothing
of this repository. First the tests run once on an unchanged copy, where they must pass.
"""

import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.mutants.mutant import Mutant, NotApplicableError, apply

KILLED, SURVIVED, TIMED_OUT, STALE, BROKEN = "killed", "survived", "timed out", "does not apply", "tests do not run"
COPIED = ("adopt_hf", "docs", "examples", "experiments", "tests", "README.md", "CHANGELOG.md", "LICENSE")
COPIED_CONFIG = ("pyproject.toml", "Makefile", "CONTRIBUTING.md", "constraints*.txt", ".ci")
IMPORTED = ("torch", "hypothesis", "pytest", "transformers", "transformers.trainer", "accelerate", "peft", "triton")
PASSED, FAILED = 0, 1  # exit codes of pytest
PAUSE = 0.05  # seconds between two looks at the processes


class Result(NamedTuple):
    """The verdict on a mutant."""

    mutant: Mutant
    verdict: str
    seconds: float
    said: str  # the test that failed first, or what is wrong


class _Running(NamedTuple):
    mutant: Mutant
    process: int
    folder: Path
    log: Path
    start: float


class BaselineError(Exception):
    """The tests fail without any mutant."""


def run(root: Path, mutants: Sequence[Mutant], limit: float, jobs: int = 1, trust: bool = False) -> Iterator[Result]:
    """Yield a result for each mutant, as they end.

    Args:
        root: The tree that is copied; it is not changed.
        limit: Seconds that the tests of one mutant may take.
        jobs: How many mutants run at once.
        trust: Whether the tests are known to pass on the unchanged tree, so that they need not run there first.

    Raises:
        BaselineError: If tests fail on the unchanged tree, or cannot be run: nothing would be known of the mutants.
    """
    _import_once()
    with tempfile.TemporaryDirectory(prefix="adopt_hf_mutants_") as home:
        if not trust:
            _check_baseline(root, mutants, Path(home), limit)
        waiting, running = list(mutants), list[_Running]()
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    mutant = waiting.pop(0)
                    folder = Path(home, f"tree-{len(waiting)}")
                    _copy(root, folder)
                    try:
                        apply(mutant, folder)
                    except NotApplicableError as error:
                        yield Result(mutant, STALE, 0.0, str(error))
                    else:
                        running.append(_start(mutant, folder))
                for one in list(running):
                    result = _ended(one, limit)
                    if result is not None:
                        running.remove(one)
                        shutil.rmtree(one.folder, ignore_errors=True)
                        yield result
                time.sleep(PAUSE)
        finally:
            for one in running:
                _kill(one.process)


def _import_once() -> None:
    """Import what all tests need and no mutant changes, so that each process finds it in memory."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # as tests/conftest.py, before Triton
    for name in IMPORTED:
        with suppress(ImportError):  # tests skip what is not installed
            importlib.import_module(name)


def _check_baseline(root: Path, mutants: Sequence[Mutant], home: Path, limit: float) -> None:
    """Run each selection of tests once, unchanged."""
    for number, tests in enumerate(dict.fromkeys(mutant.tests for mutant in mutants)):
        folder = home / f"baseline-{number}"
        _copy(root, folder)
        running = _start(Mutant("baseline", "", "", "", tests, ""), folder)
        while (result := _ended(running, limit)) is None:
            time.sleep(PAUSE)
        if result.verdict != SURVIVED:
            raise BaselineError(f"without any mutant: pytest {' '.join(tests)}: {result.verdict}: {result.said}")
        shutil.rmtree(folder, ignore_errors=True)


def _copy(root: Path, folder: Path) -> None:
    """The files that tests read."""
    folder.mkdir()
    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        elif source.exists():
            shutil.copy2(source, folder / name)
    for pattern in COPIED_CONFIG:
        for source in root.glob(pattern):
            (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / source.name)


def _start(mutant: Mutant, folder: Path) -> _Running:
    log = folder / "pytest.log"
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        _run_tests(mutant.tests, folder, log)
    return _Running(mutant, process, folder, log, start)


def _run_tests(tests: Sequence[str], folder: Path, log: Path) -> None:
    """Run pytest in this process, which is a fork, on the tree in `folder`; never returns."""
    code = BROKEN_CODE
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT, 0o600)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        os.chdir(folder)
        os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTEST_ADDOPTS": ""}
        for name in [
            name for name in sys.modules if name.split(".")[0] in ("adopt_hf", "examples", "experiments", "tests")
        ]:
            del sys.modules[name]
        sys.path[:] = [str(folder), *(entry for entry in sys.path if entry not in ("", str(Path.cwd())))]
        import pytest

        code = int(pytest.main(["-x", "-q", "-rfE", "--color=no", "-p", "no:cacheprovider", *tests]))
    finally:
        sys.stdout.flush()
        os._exit(code)


BROKEN_CODE = 3  # pytest's own for an internal error


def _ended(one: _Running, limit: float) -> Result | None:
    """The result, or None while the tests run."""
    seconds = time.monotonic() - one.start
    process, status = os.waitpid(one.process, os.WNOHANG)
    if process == 0:
        if seconds < limit:
            return None
        _kill(one.process)
        return Result(one.mutant, TIMED_OUT, seconds, f"more than {limit:.0f} s")
    code = os.waitstatus_to_exitcode(status)
    said = one.log.read_text(encoding="utf-8", errors="replace") if one.log.exists() else ""
    lines = [line for line in said.splitlines() if line.strip()]
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    if code == PASSED:
        nothing = not re.search(r"\d+ passed", said)  # all skipped: nothing would notice a fault
        return Result(one.mutant, BROKEN if nothing else SURVIVED, seconds, lines[-1] if lines else "")
    if code == FAILED or code < 0:  # or the process was killed by a signal, as a wild address does
        return Result(one.mutant, KILLED, seconds, failed[1] if failed else f"the process ended with {code}")
    return Result(one.mutant, BROKEN, seconds, f"pytest ended with {code}: {lines[-1] if lines else ''}")


def _kill(process: int) -> None:
    """End the tests with all that they have started."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(process, 0)
