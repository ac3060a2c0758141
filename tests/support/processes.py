"""Start Python processes for tests: one environment, free ports, launchers, and what to do at the end of a job.

With `modules` a process is a fork of one that has imported these (`forks.py`), which saves seconds.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import psutil

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"
SCRIPTS = ROOT / "tests" / "integrations" / "scripts"  # that a user could have written
PORT = "{port}"  # an argument of `run` that stands for a free port
WITHOUT_TRANSFORMERS = {"PYTHONPATH": str(Path(__file__).parent / "without_transformers")}
HIDDEN_GPUS = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}
# Once in a hundred processes a thread of a library aborts the interpreter's own end, after all work is done
# (apache/arrow#45214, for one).
ABORTED = "terminate called without an active exception"

Finished = subprocess.CompletedProcess[str]
Variables = Mapping[str, str | None]


def environment(variables: Variables | None = None, gpus: bool = False) -> dict[str, str]:
    """Return this process's environment with those of `ENVIRONMENT` and `variables`, None of which removes one.

    This tree is on PYTHONPATH, after a PYTHONPATH of `variables`. GPUs are hidden, except with `gpus`.
    """
    chosen: dict[str, str | None] = {**os.environ, **ENVIRONMENT, **({} if gpus else HIDDEN_GPUS), **(variables or {})}
    if chosen.get("PYTHONPATH", "") is not None:
        paths = [(variables or {}).get("PYTHONPATH"), str(ROOT), os.environ.get("PYTHONPATH")]
        chosen["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return {name: value for name, value in chosen.items() if value is not None}


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def torchrun(processes: int) -> tuple[object, ...]:
    """Arguments of Python before a script: `torchrun`, on a free port."""
    return ("-m", "torch.distributed.run", "--nproc_per_node", processes, "--master_port", PORT)


def accelerate(config: str | Path, processes: int = 2) -> tuple[object, ...]:
    """Arguments of Python before a script: `accelerate launch` with a config of the examples, on a free port.

    `accelerate launch` itself imports other subcommands, and with them timm, which needs torchvision.
    """
    path = config if isinstance(config, Path) else CONFIGS / f"{config}.yaml"
    launcher = ("-m", "accelerate.commands.launch", "--config_file", path, "--num_processes", processes)
    return (*launcher, "--main_process_port", PORT)


def run(
    *args: object,
    env: Variables | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    gpus: bool = False,
    modules: tuple[str, ...] = (),
    own_end: bool = False,
    timeout: float = 600,
) -> Finished:
    """Return the end of `python ARGS`, again on another port if a process was faster at taking it.

    Args:
        args: What stands behind `python`. `PORT` becomes a free port.
        env: Variables of its environment, see `environment`.
        cwd: The folder it begins in.
        stdin: The text that it reads, not with `modules`.
        gpus: Whether it sees GPUs.
        modules: What the process is a fork of, once they are imported. Without any the process is new.
        own_end: Whether a fork ends as Python does by itself, see `Forks.start`.
        timeout: The seconds after which it is killed with all that it has started.

    Raises:
        TimeoutExpired: If it took too long.
    """
    variables = environment(env, gpus)
    for _ in range(3):
        port = str(free_port())
        command = [str(arg).replace(PORT, port) for arg in args]
        if modules:
            from tests.support.forks import forks

            done = forks(modules, variables).run_to_end(command, variables, cwd or Path.cwd(), timeout, own_end)
        else:
            done = run_new(command, variables, cwd, stdin, timeout)
        if done.returncode == 0 or "EADDRINUSE" not in done.stderr:
            break
    return done


def python(*args: object, **options: Any) -> str:
    """Return what `python ARGS` prints on stdout. Its exit code must be 0."""
    done = run(*args, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_new(
    command: list[str], variables: dict[str, str], cwd: Path | None, stdin: str | None, timeout: float
) -> Finished:
    """Return the end of a new process."""
    with start(command, variables, cwd, subprocess.DEVNULL if stdin is None else subprocess.PIPE) as process:
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired:
            kill(process.pid)
            raise
    return Finished(process.args, process.returncode, out, err)


def start(
    command: list[str], variables: dict[str, str], cwd: Path | None = None, stdin: int = subprocess.DEVNULL
) -> "subprocess.Popen[str]":
    """Start `python COMMAND`, for tests that look at it while it runs."""
    return subprocess.Popen(
        [sys.executable, *command],
        env=variables,
        cwd=cwd,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def kill(pid: int) -> None:
    """Kill a process and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for started in (*process.children(recursive=True), process):
            started.kill()


# ----- for jobs -----


def without_extensions() -> None:
    """Keep DeepSpeed from compiling an extension for shared memory, which takes two minutes."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def end() -> NoReturn:
    """End a process whose work is done without the interpreter's own end, see `ABORTED`.

    First wait until the other processes are done as well.
    """
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
