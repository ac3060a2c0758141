"""Real launches on two processes of this machine's CPU, each once for all the tests that look at it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.harness import machine as conditions
from experiments.launches.matrix import Matrix
from tests.support import processes as python
from tests.support.forks import OF_RECIPE
from tests.support.processes import ROOT

MATRIX = pytest.StashKey[Matrix]()
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed")
COLUMN_OF = {"test_parity": "parity", "test_resume": "resume", "test_really_adopt": "really ADOPT"}


def run(*command: Any, fails: bool = False, forked: bool = False, timeout: float = 400, **options: Any) -> str:
    """Return what `python COMMAND` printed. Its exit code must be 0, or with `fails` another.

    With `forked` its processes are forks of one that has imported what they need.
    """
    modules = OF_RECIPE if forked else ()
    # Launch configs name files from the root.
    done = python.run(*command, cwd=ROOT, modules=modules, timeout=timeout, **options)
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, f"exit code {done.returncode}\n{output[-6000:]}"
    return output


FORKED = (
    "job.py",
    "dcp_job.py",
    "mesh_job.py",
)  # jobs that do not care what has been imported before them, nor in which order


def torchrun(processes: int, script: str, *args: Any, **options: Any) -> str:
    """Return what `torchrun --nproc_per_node PROCESSES tests/processes/SCRIPT ARGS` printed."""
    options = {"forked": script in FORKED} | options
    return run(*python.torchrun(processes), Path(__file__).parent / script, *args, **options)


def launch(config: str, script: str, *args: Any, processes: int = 2, **options: Any) -> str:
    """Return what `accelerate launch --config_file CONFIG tests/processes/SCRIPT ARGS` printed."""
    options = {"forked": script in FORKED and not options.get("gpus")} | options
    return run(*python.accelerate(config, processes), Path(__file__).parent / script, *args, **options)


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`launched(config, *args)`: the folder that job.py filled, launched once however many tests ask for it.

    A job that failed is not launched again: all tests get the same error.
    """
    results: dict[tuple[Any, ...], Path | AssertionError] = {}

    def once(config: str, *args: Any, processes: int = 2) -> Path:
        key = (config, processes, *args)
        if key not in results:
            folder = tmp_path_factory.mktemp(f"{config}_{processes}")
            try:
                launch(config, "job.py", folder, "--use_cpu", *args, processes=processes)
                results[key] = folder
            except AssertionError as error:
                results[key] = error
        result = results[key]
        if isinstance(result, AssertionError):
            raise result
        return result

    return once


@pytest.fixture(scope="session")
def keep(request: pytest.FixtureRequest) -> Callable[[str, list[dict[str, Any]]], None]:
    """`keep(name, rows)`: with `--update-docs`, keep what was measured in docs/results, for the pages."""

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        if request.config.getoption("--update-docs"):
            kept = {"conditions": request.config.stash[MATRIX].conditions, "rows": rows}
            (conditions.RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    return write


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest) -> Matrix:
    """The matrix in which the tests note their measurements."""
    return request.config.stash[MATRIX]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-docs", action="store_true", help="keep what is measured in docs/results")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MATRIX] = Matrix(conditions=conditions.now(*PACKAGES))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """A cell of the matrix whose test has failed says so."""
    report = yield
    arguments = getattr(getattr(item, "callspec", None), "params", {})
    column = COLUMN_OF.get(getattr(item, "originalname", ""))
    if report.failed and column and {"mode", "loop"} <= arguments.keys():
        item.config.stash[MATRIX].note(arguments["mode"], arguments["loop"], column, "FAILED")
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    matrix = config.stash[MATRIX]
    if matrix.cells:
        terminalreporter.section("launch modes")
        terminalreporter.write_line(matrix.table())
        if config.getoption("--update-docs"):
            matrix.save()
