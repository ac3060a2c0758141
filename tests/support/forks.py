"""Run `python ARGS` many times, in forks of one process that has imported what all of them import.

forks.py MODULES... imports those of the modules that there are, then reads lines of JSON from stdin, {"args",
"env", "cwd", "out", "err", "own_end"}, and answers each with {"pid"} when it has begun and {"exit_code"} when it has
ended. ARGS are `-m MODULE ...`, `-c CODE ...` or `SCRIPT ...`. Tests call `forks` below.

A launcher, accelerate's or torch's, runs unchanged, except that the processes that it starts are forks as well, made
before the launcher has any threads or sockets.
"""

import atexit
import ctypes
import gc
import importlib
import json
import math
import os
import queue
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from tests.support.processes import kill

# What launchers and their processes import, in the order in which job.py does.
LAUNCHED = ("tests.processes.job", "accelerate.commands.launch", "torch.distributed.run", "deepspeed")
OF_RECIPE = (  # and examples/gpt2_pretraining
    *LAUNCHED,
    "datasets",
    "matplotlib.figure",
    "tokenizers",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "transformers.models.gpt2.modeling_gpt2",
)
# What transformers, accelerate, peft, datasets and deepspeed import, and none of them: adopt_hf meets their imports.
BEFORE_TRANSFORMERS = (
    *("torch._dynamo", "torch.distributed.checkpoint", "torch.nn.attention.flex_attention", "sklearn.metrics"),
    *("huggingface_hub.errors", "huggingface_hub.hf_api", "tokenizers", "safetensors.torch", "PIL.Image", "jinja2"),
    *("scipy.stats", "pandas", "pyarrow.dataset", "pyarrow.parquet", "fsspec.asyn", "multiprocess", "regex", "xxhash"),
)
LAUNCHERS = {"accelerate.commands.launch": "--num_processes", "torch.distributed.run": "--nproc_per_node"}
NETWORK = "ADOPT_HF_TEST_NETWORK"  # a variable of the environment
RESTARTS = "--max_restarts"  # of the processes that a launcher starts


class Waiting:
    """A fork that runs what it is told later; with what the launcher asks of a `subprocess.Popen`."""

    def __init__(self) -> None:
        self.returncode: int | None = None
        reading, self.writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.writing)
            with os.fdopen(reading) as pipe:
                told = pipe.readline()  # not to its end, which forks made later hold open, too
            if not told:  # the launcher has started fewer, or none
                os._exit(0)
            os.setsid()
            run(**json.loads(told))
        os.set_inheritable(self.writing, False)
        os.close(reading)

    def start(self, args: tuple[str, ...], env: dict[str, str]) -> "Waiting":
        with os.fdopen(self.writing, "w") as pipe:
            print(json.dumps({"args": [arg for arg in args[1:] if arg != "-u"], "env": env}), file=pipe)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a fork", timeout or 0)
            time.sleep(0.01)
        return self.returncode


def run(args: list[str], env: dict[str, str]) -> None:
    """Do what `python ARGS` does, in the network namespace that `env` may name, and end this process."""
    os.environ.clear()
    os.environ.update(env)
    if NETWORK in env:
        enter(env[NETWORK])
    code = 1
    try:
        if args[0] == "-c":
            sys.argv = ["-c", *args[2:]]
            sys.path[0] = ""
            exec(compile(args[1], "<string>", "exec"), {"__name__": "__main__"})
        elif args[0] == "-m":
            sys.argv = args[1:]
            sys.path[0] = os.getcwd()
            runpy.run_module(args[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = args
            sys.path[0] = os.path.dirname(args[0])
            runpy.run_path(args[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def enter(network: str) -> None:
    """Move this thread into a network namespace of `ip netns`, for `os.setns` of Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{network}") as namespace:
        if libc.setns(namespace.fileno(), 0) != 0:
            raise OSError(ctypes.get_errno(), f"setns into {network} failed")


def count_of(args: list[str], option: str, default: int) -> int:
    return int(args[args.index(option) + 1]) if option in args else default


def launch_forks(count: int) -> None:
    waiting = [Waiting() for _ in range(count)]
    SubprocessHandler._popen = lambda self, args, env: waiting.pop(0).start(args, env)  # type: ignore[method-assign]


def run_to_its_own_end(args: list[str], env: dict[str, str]) -> None:
    """Do what `python -m MODULE ...` does, in this process's `__main__`. What it raises ends the process."""
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = args[1:]
    sys.path[0] = os.getcwd()
    runpy._run_module_as_main(args[1])  # type: ignore[attr-defined]


def begin(cwd: str, out: str, err: str) -> None:
    """Go to the folder, and print into the files."""
    os.chdir(cwd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


def answer(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def serve() -> dict[str, Any] | None:
    """Return, in each fork, the line that it is about; in this process None, at the end of the lines."""
    for module in sys.argv[1:]:
        with suppress(ModuleNotFoundError):  # not installed, or not in an older version
            importlib.import_module(module)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            told: dict[str, Any] = json.loads(line)
            return told
        answer(pid=child)
        answer(exit_code=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return None


# ----- for tests -----


class Started:
    """A process that `Forks.start` has started, with some of the methods of a `subprocess.Popen`."""

    def __init__(self, answers: "queue.SimpleQueue[dict[str, int]]"):
        self.answers = answers
        self.returncode: int | None = None
        self.pid = answers.get(timeout=200)["pid"]

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            try:
                self.returncode = self.answers.get(timeout != 0, timeout)["exit_code"]
            except queue.Empty:
                raise subprocess.TimeoutExpired("a fork", timeout or 0) from None
        return self.returncode


class Forks:
    """The process that is forked, for one command at a time."""

    def __init__(self, modules: tuple[str, ...], environment: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answers: queue.SimpleQueue[dict[str, int]] = queue.SimpleQueue()
        threading.Thread(target=self.listen, daemon=True).start()
        atexit.register(self.process.kill)

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(json.loads(line))

    def start(
        self, args: list[str], env: dict[str, str], cwd: Path, out: str | Path, err: str | Path, own_end: bool = False
    ) -> Started:
        """Start `python ARGS`, which prints into two files or one.

        Args:
            own_end: Whether the interpreter ends as it does by itself, with the code in its `__main__`: with exit
                handlers, death by a signal, and a second for what transformers has imported. For `-m MODULE ...` only.
        """
        told = {"args": args, "env": env, "cwd": str(cwd), "out": str(out), "err": str(err), "own_end": own_end}
        print(json.dumps(told), file=self.process.stdin, flush=True)
        return Started(self.answers)

    def run_to_end(
        self, args: list[str], env: dict[str, str], cwd: Path, timeout: float = 600, own_end: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Return the end of `python ARGS` and what it printed. It is killed if it takes too long."""
        with (
            tempfile.NamedTemporaryFile("r", errors="replace") as out,
            tempfile.NamedTemporaryFile("r", errors="replace") as err,
        ):
            started = self.start(args, env, cwd, out.name, err.name, own_end)
            try:
                code = started.wait(timeout)
            except subprocess.TimeoutExpired:
                kill(started.pid)
                started.wait(60)
                raise subprocess.TimeoutExpired(args, timeout, out.read(), err.read()) from None
            return subprocess.CompletedProcess(args, code, out.read(), err.read())


BEGUN: dict[tuple[str, ...], Forks] = {}


def forks(modules: tuple[str, ...], environment: dict[str, str]) -> Forks:
    """Return the process that has imported these, begun with this environment when it is first asked for."""
    if modules not in BEGUN:
        BEGUN[modules] = Forks(modules, environment)
    return BEGUN[modules]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    told = serve()
    if told is not None:
        begin(told["cwd"], told["out"], told["err"])
        if told["own_end"]:
            run_to_its_own_end(told["args"], told["env"])
        else:
            launched = told["args"][1] if told["args"][0] == "-m" else ""
            if launched in LAUNCHERS:
                launch_forks(count_of(told["args"], LAUNCHERS[launched], 1) * (1 + count_of(told["args"], RESTARTS, 0)))
            run(told["args"], told["env"])
