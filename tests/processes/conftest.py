"""Real launches on two processes of this machine's CPU, each once for all the tests that look at it."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.harness import machine as conditions
from experiments.launches.matrix import Matrix
from tests.support.forks import OF_RECIPE, forks, kill

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
HIDDEN_GPUS = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
MATRIX = pytest.StashKey[Matrix]()
PACKAGES = ("torch", "transformers", "accelerate", "deepspeed")
COLUMN_OF = {"test_parity": "parity", "test_resume": "resume", "test_really_adopt": "really ADOPT"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def run(*command: Any, fails: bool = False, gpus: bool = False, forked: bool = False, timeout: float = 400) -> str:
    """What a command printed; its exit code must be 0, or with `fails` another. GPUs are hidden unless asked for.

    A command that takes longer than `timeout` seconds is killed with all that it has started. With `forked` its
    processes are forks of one that has imported what they need, in place of new ones: see forks.py.
    """
    environment = ENVIRONMENT | ({} if gpus else HIDDEN_GPUS) | {"PYTHONPATH": str(ROOT)}
    arguments = [str(part) for part in command]
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        if forked and not gpus:
            code = forks(OF_RECIPE, environment).run(
                arguments, os.environ | environment, ROOT, log.name, timeout=timeout
            )
        else:
            code = run_anew(arguments, os.environ | environment, log.name, timeout)
        output = log.read()
    assert code is not None, f"no end after {timeout:.0f} s\n{output[-6000:]}"
    assert (code != 0) == fails, f"exit code {code}\n{output[-6000:]}"
    return output


def run_anew(command: list[str], environment: dict[str, str], log: str, timeout: float) -> int | None:
    """The exit code, or None if it took too long."""
    with open(log, "a") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,  # launch configs name files from there
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        kill(process.pid)
        process.wait()
        return None


def run_on_free_port(command: Callable[[int], tuple[Any, ...]], **options: Any) -> str:
    """`run(*command(port))`, again if somebody else on this machine was faster at taking the port."""
    for _ in range(2):
        try:
            return run(*command(free_port()), **options)
        except AssertionError as error:
            if "EADDRINUSE" not in str(error):
                raise
    return run(*command(free_port()), **options)


FORKED = ("job.py", "dcp_job.py")  # jobs that do not care what has been imported before them, nor in which order


def torchrun(processes: int, script: str, *args: Any, **options: Any) -> str:
    """`torchrun --nproc_per_node PROCESSES tests/processes/SCRIPT ARGS`; what it printed."""
    start = ("-m", "torch.distributed.run", "--nproc_per_node", processes, "--master_port")
    options = {"forked": script in FORKED} | options
    return run_on_free_port(lambda port: (*start, port, Path(__file__).parent / script, *args), **options)


def launch(config: str, script: str, *args: Any, processes: int = 2, **options: Any) -> str:
    """`accelerate launch --config_file examples/accelerate_configs/CONFIG.yaml tests/processes/SCRIPT ARGS`."""
    # Not `accelerate launch`: its other subcommands import timm, which needs torchvision.
    start = ("-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml")
    start += ("--num_processes", processes, "--main_process_port")
    options = {"forked": script in FORKED} | options
    return run_on_free_port(lambda port: (*start, port, Path(__file__).parent / script, *args), **options)


@pytest.fixture(scope="session")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`launched(config, *args)`: the folder that job.py filled, launched once however many tests ask for it.

    A job that failed is not launched again: whoever asks gets the same error.
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
    """Where the tests note what they measured."""
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
