"""`python ARGS` again and again, in forks of one process that has imported what all of them import.

forks.py MODULES... imports the modules, then reads lines of JSON from stdin, {"args", "env", "cwd", "log"}, and answers
each with {"pid"} when it has begun and {"exit_code"} when it has ended. ARGS are `-m MODULE ...` or `SCRIPT ...`.

A launcher, accelerate's or torch's, runs as it is, but for one thing: the processes that it starts are forks, too,
made before the launcher has any threads or sockets.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
from typing import Any

from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

LAUNCHERS = {"accelerate.commands.launch": "--num_processes", "torch.distributed.run": "--nproc_per_node"}


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
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int | None:
        return self._wait(0)

    def _wait(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def run(args: list[str], env: dict[str, str]) -> None:
    """What `python ARGS` does, with its end."""
    os.environ.clear()
    os.environ.update(env)
    code = 1
    try:
        if args[0] == "-m":
            sys.argv = args[1:]
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


def launch_forks(count: int) -> None:
    waiting = [Waiting() for _ in range(count)]
    SubprocessHandler._popen = lambda self, args, env: waiting.pop(0).start(args, env)  # type: ignore[method-assign]


def in_child(args: list[str], env: dict[str, str], cwd: str, log: str) -> None:
    os.chdir(cwd)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if args[0] == "-m" and args[1] in LAUNCHERS:
        launch_forks(int(args[args.index(LAUNCHERS[args[1]]) + 1]))
    run(args, env)


def answer(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            in_child(**json.loads(line))
        answer(pid=child)
        answer(exit_code=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
