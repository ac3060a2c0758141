"""The runner: start the runs of a plan, several at once, notice how each ends, and stop them all if asked to."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adopt_hf.commands.compare import outcome
from adopt_hf.commands.compare.folder import ASKED, DONE, LOG, OUTPUT, Folder, read_json, write_json
from adopt_hf.commands.compare.plan import InputError, Run
from adopt_hf.commands.run import python_paths
from adopt_hf.integrations.transformers.observer import VARIABLE

POLL = 0.2  # seconds
PATIENCE = 30.0  # seconds that a run has to end after SIGTERM; torchrun takes some to end its workers

Done = dict[str, Any]


class Stopped(BaseException):
    """A signal has asked the comparison to stop.

    Args:
        number: The signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Started:
    """A run that is going on."""

    def __init__(self, run: Run, folder: Path, process: "subprocess.Popen[bytes]"):
        self.run, self.folder, self.process = run, folder, process
        self.since = time.monotonic()
        self.is_shared = False  # whether another run has been going on beside it

    def seen(self) -> dict[str, Any]:
        """Return what its first process has seen last."""
        found = outcome.observed(self.folder)
        return next((one for one in found if one.get("is_first")), {})


class Runner:
    """Start the runs, and keep what became of them in their folders.

    Args:
        folder: The output folder.
        program: The words that start the command.
        runs: All runs of the plan.
        jobs: The number of runs at once.
        show: Function that is called again and again while runs are going on.
        changed: Function that is called when a run has ended.
    """

    def __init__(
        self,
        folder: Folder,
        program: list[str],
        runs: list[Run],
        jobs: int,
        show: Callable[["Runner"], None],
        changed: Callable[["Runner"], None],
    ):
        self.folder, self.program, self.runs, self.jobs = folder, program, runs, jobs
        self.show, self.changed = show, changed
        self.done: dict[Run, Done] = {}
        self.before: set[Run] = set()  # finished by an earlier call
        self.going: list[Started] = []
        self.token = secrets.token_hex(8)  # of this process, so that what an earlier one has started knows its own
        for run in runs:
            found = read_json(folder.of(run) / DONE)
            if isinstance(found, dict) and found.get("status") == "finished":
                self.done[run] = found
                self.before.add(run)

    def run_all(self) -> None:
        """Run what is not finished yet. What has failed in an earlier call is tried again.

        Raises:
            InputError: If the script is none of a Trainer, or does not use what it is given.
            Stopped: If a signal has come.
        """
        waiting = [run for run in self.runs if run not in self.done]
        with self._alive(), _signals():
            try:
                while waiting or self.going:
                    while waiting and len(self.going) < self.jobs:
                        self._start(waiting.pop(0))
                    self.show(self)
                    time.sleep(POLL)
                    self._look()
                self.show(self)
            finally:
                self._stop()
        self._check_any_trained()

    def _start(self, run: Run) -> None:
        folder = self.folder.of(run)
        _make_empty(folder)
        asked = folder / ASKED.replace(".json", f"-{self.token}.json")
        output_dir = folder / OUTPUT
        write_json(
            asked,
            {
                "optim": run.optim,
                "learning_rate": run.lr,
                "seed": run.seed,
                "output_dir": str(output_dir),
                "alive": str(self._pipe),
            },
        )
        environment = {**os.environ, VARIABLE: str(asked)}
        environment["PYTHONPATH"] = os.pathsep.join(python_paths(os.environ.get("PYTHONPATH", "")))
        command = [*self.program, *run.arguments(output_dir)]
        with open(folder / LOG, "wb") as log:
            try:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise InputError(f"{command[0]!r} cannot be executed: {error.strerror}") from None
        self.going.append(Started(run, folder, process))
        if len(self.going) > 1:
            for one in self.going:
                one.is_shared = True

    def _look(self) -> None:
        """Take in the runs that have ended, and refuse a script that does not use what it is given."""
        for one in list(self.going):
            code = one.process.poll()
            found = outcome.refused(one.folder)
            if found is not None:
                name, value = found
                raise InputError(
                    f"the script ignores --{name}: {one.run.name} asked for {self._asked(one.run, name)!r}, and it "
                    f"trains with {value!r}. Let it read TrainingArguments from its command line"
                )
            if code is not None:
                self.going.remove(one)
                _end(one.process)  # what it has left behind
                self._ended(one, code)

    def _asked(self, run: Run, name: str) -> Any:
        values = {"optim": run.optim, "learning_rate": run.lr, "seed": run.seed}
        return values.get(name, str(self.folder.of(run) / OUTPUT))

    def _ended(self, one: Started, code: int) -> None:
        result = outcome.finished(one.folder) if code == 0 else None
        if code == 0 and result is None and not any(d["status"] == "finished" for d in self.done.values()):
            lines = outcome.last_lines(one.folder)
            said = f"; its last line is {lines[-1]!r}" if lines else ""
            raise InputError(
                f"the command is no script of a Trainer: it has ended well and left no trainer_state.json with a loss "
                f"in --output_dir{said}. adopt-hf compare needs a script that trains with transformers.Trainer"
            )
        done: Done = {"seconds": time.monotonic() - one.since, "shared": one.is_shared, "exit_code": code}
        if result is not None:
            done |= {"status": "finished", **result}
        else:
            done |= {"status": "failed", "last_lines": outcome.last_lines(one.folder), "trained": bool(one.seen())}
        write_json(one.folder / DONE, done)
        self.done[one.run] = done
        self.changed(self)

    def _check_any_trained(self) -> None:
        """Raise InputError if all runs have failed before the first step of a Trainer."""
        if self.done and not any(done["status"] == "finished" or done["trained"] for done in self.done.values()):
            first = self.done[self.runs[0]]
            raise InputError(
                f"none of the {len(self.done)} runs has begun to train with a Trainer; the first one ended with exit "
                f"code {first['exit_code']}: {outcome.reason(first['last_lines'])}"
            )

    def _stop(self) -> None:
        """End all runs that are going on: first gently, then not."""
        for one in self.going:
            _signal(one.process, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < until and any(one.process.poll() is None for one in self.going):
                time.sleep(POLL)
        finally:
            for one in self.going:
                _end(one.process)
            self.going.clear()

    @property
    def _pipe(self) -> Path:
        return self.folder.path / f"alive-{self.token}"

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """Hold the named pipe open that tells the runs that this process is alive, however it ends."""
        for old in self.folder.path.glob("alive-*"):
            old.unlink()
        if not hasattr(os, "mkfifo"):
            yield
            return
        os.mkfifo(self._pipe)
        both = os.open(self._pipe, os.O_RDWR)  # a writer alone would wait for a reader
        try:
            yield
        finally:
            os.close(both)
            self._pipe.unlink(missing_ok=True)


def _make_empty(folder: Path) -> None:
    """Make an empty folder in place of what an interrupted or failed run has left.

    The processes of a comparison that was killed end a moment after it, and may still write.
    """
    for _ in range(50):
        with contextlib.suppress(FileNotFoundError, OSError):
            shutil.rmtree(folder)
        if not folder.exists():
            break
        time.sleep(POLL)
    folder.mkdir(parents=True)


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to a command and to all that it has started in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a command and what is left of its session, and take in its exit code."""
    _signal(process, getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Raise Stopped in the block for the signals that ask a program to stop. A second one ends the patience."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}  # nohup stays
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
