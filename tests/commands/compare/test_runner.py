"""The runner with real processes: runs that end well, fail, are refused, share the machine or are stopped."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from adopt_hf.commands.compare.folder import Folder
from adopt_hf.commands.compare.plan import InputError, Plan, Run
from adopt_hf.commands.compare.runner import Runner, Stopped

FAKE = Path(__file__).parent / "scripts" / "fake.py"
posix = pytest.mark.skipif(os.name != "posix", reason="signals")


def runner(path: Path, how: str, jobs: int = 1, seeds: int = 2, optims: tuple[str, ...] = ("adopt", "sgd")) -> Runner:
    plan = Plan((str(FAKE), how), optims, (1e-3,), seeds, False)
    path.mkdir(exist_ok=True)
    program = [sys.executable, str(FAKE), how]
    return Runner(Folder(path), program, plan.runs(), jobs, lambda _: None, lambda _: None)


def starts(path: Path) -> list[str]:
    return (path / "starts").read_text().split("\n")[:-1]


def test_runs_that_end_well_are_not_run_again(tmp_path: Path) -> None:
    work = runner(tmp_path, "well")
    work.run_all()
    assert starts(tmp_path) == ["adopt 0", "sgd 0", "adopt 1", "sgd 1"]
    assert {done["status"] for done in work.done.values()} == {"finished"}
    assert work.done[Run("adopt", 1e-3, 1)]["curves"]["eval_loss"][1] == (10, 2.2)
    assert not any(done["shared"] for done in work.done.values())
    more = runner(tmp_path, "well", seeds=3)
    assert len(more.before) == 4
    more.run_all()
    assert starts(tmp_path)[4:] == ["adopt 2", "sgd 2"]
    assert list(tmp_path.glob("alive-*")) == []


def test_a_run_that_fails_stops_none_and_is_tried_again(tmp_path: Path) -> None:
    work = runner(tmp_path, "fail")
    work.run_all()
    failed = work.done[Run("adopt", 1e-3, 1)]
    assert (failed["status"], failed["exit_code"]) == ("failed", 3)
    assert failed["last_lines"] == ["reading data", "ValueError: record 17 is empty"]
    assert len(starts(tmp_path)) == 4
    again = runner(tmp_path, "well")
    again.run_all()
    assert starts(tmp_path)[4:] == ["adopt 1"]
    assert again.done[Run("adopt", 1e-3, 1)]["status"] == "finished"


def test_several_at_once_are_said_to_share_the_machine(tmp_path: Path) -> None:
    work = runner(tmp_path, "together", jobs=2, seeds=1)
    work.run_all()
    assert all(done["shared"] for done in work.done.values())


@pytest.mark.parametrize(
    ("how", "count", "message"),
    [
        ("print", 1, "is no script of a Trainer: .* its last line is 'nothing is trained here'"),
        ("refuse", 1, "the script ignores --optim: adopt_lr1e-3_seed0 asked for 'adopt', and it trains with 'sgd'"),
        ("broken", 4, "none of the 4 runs has begun to train .* exit code 1: ImportError: no module named torch"),
    ],
)
def test_scripts_that_cannot_be_compared(how: str, count: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        runner(tmp_path, how).run_all()
    assert len(starts(tmp_path)) == count
    assert list(tmp_path.glob("alive-*")) == []


def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    work = runner(tmp_path, "well")
    work.program = [str(tmp_path)]
    with pytest.raises(InputError, match="cannot be executed: Permission denied"):
        work.run_all()


def ended(pids: list[int], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
            return True
        time.sleep(0.05)
    return False


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_and_what_is_finished_stays(number: signal.Signals, tmp_path: Path) -> None:
    work = runner(tmp_path, "wait", jobs=2, optims=("adopt",))
    before = signal.getsignal(number)

    def interrupt() -> None:
        while not (tmp_path / "pids").is_file() or not work.done:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped) as stopped:
        work.run_all()
    assert stopped.value.number == number
    assert ended([int(pid) for pid in (tmp_path / "pids").read_text().split()])
    assert signal.getsignal(number) == before
    assert [run.seed for run in work.done] == [0]
    again = runner(tmp_path, "well", optims=("adopt",))
    again.run_all()
    assert sorted(starts(tmp_path)) == ["adopt 0", "adopt 1", "adopt 1"]


def test_each_run_gets_an_empty_folder_and_no_terminal(tmp_path: Path) -> None:
    work = runner(tmp_path, "well", seeds=1, optims=("adopt",))
    left = work.folder.of(work.runs[0]) / "output" / "checkpoint-5"
    left.mkdir(parents=True)
    work.run_all()
    assert not left.exists()
    assert work.done[work.runs[0]]["status"] == "finished"


def test_what_is_seen_while_a_run_goes_on(tmp_path: Path) -> None:
    seen: list[Any] = []
    work = runner(tmp_path, "together", seeds=1, optims=("adopt",))

    def show(it: Runner) -> None:
        for one in it.going:
            (one.folder / "seen-7.json").write_text('{"optim": "adopt", "is_first": true, "step": 3, "max_steps": 10}')
            seen.append(one.seen()["step"])

    work.show = show
    work.run_all()
    assert set(seen) == {3}
