"""The recipe killed again and again, one process or all, in training and in saving: what is resumed is what was saved.

A chain of runs for each of three launch modes. The first trains to its end. Another is killed, resumed from its last
complete checkpoint and killed again, 20 times over the three (ADOPT_HF_KILLS, if that is set), and ends with the same
weights and the same optimizer bit for bit. What a kill leaves half written is passed over and named; what is damaged
later is refused.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from adopt_hf.integrations.checkpoints import MARK, last_complete, missing
from tests.examples.test_gpt2_pretraining import EXAMPLE
from tests.examples.toy import write_toy
from tests.support.forks import OF_RECIPE, forks
from tests.support.processes import PORT, ROOT, accelerate, environment, free_port

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]

SEED = 2411
KILLS = int(os.environ.get("ADOPT_HF_KILLS", "20"))  # over the three modes; each takes some 10 s
STEPS, SAVE = 48, 4
TOO_LATE = 4  # how often a chain's run may end before it is killed


@dataclass(frozen=True)
class Mode:
    config: str
    script: str
    distributed_type: str
    stage: int | None
    calls: int  # of the optimizer's step() in a step
    kills: int
    optimizer: str  # a file of the last process's in a checkpoint

    def __str__(self) -> str:
        return f"{self.config}-{self.script.removesuffix('.py')}"


MODES = [
    Mode("ddp", "train.py", "MULTI_CPU", None, 1, (KILLS + 2) // 3, "optimizer.pt"),
    # ZeRO steps its parameter groups one by one.
    Mode(
        "zero2",
        "train_accelerate.py",
        "DEEPSPEED",
        2,
        2,
        (KILLS + 1) // 3,
        "pytorch_model/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    ),
    Mode("fsdp2_sharded", "train.py", "FSDP", None, 1, KILLS // 3, "optimizer_0/__1_0.distcp"),
]
EACH_MODE = pytest.mark.parametrize("mode", MODES, ids=str)


@dataclass
class Tally:
    """The outcomes of a chain's kills."""

    kills: int = 0
    of_all: int = 0  # of both processes, else of one
    in_saving: int = 0  # a checkpoint was being written
    incomplete: int = 0  # and was left so
    anew: int = 0  # before the first complete checkpoint: from the beginning
    too_late: int = 0  # runs that ended before their kill, which is not counted
    seconds: float = 0

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.of_all} of all processes, {self.kills - self.of_all} of one), "
            f"{self.in_saving} while saving, {self.incomplete} left an incomplete checkpoint, "
            f"{self.anew} before the first complete one; "
            f"{self.too_late} too late and done again; {self.seconds:.0f} s"
        )


@dataclass
class Chain:
    folder: Path
    config: Path
    tally: Tally

    @property
    def reference(self) -> Path:
        return self.folder / "reference"

    @property
    def killed(self) -> Path:
        return self.folder / "killed"


# ----- a launch -----


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


class Launch:
    """A launch of the recipe in a mode, for a `with`: none of its processes outlives the block.

    Args:
        launcher: What stands before the script. Default: `accelerate launch` with the mode's config.
    """

    def __init__(self, mode: Mode, config: Path, output: Path, *args: object, launcher: tuple[object, ...] = ()):
        self.mode, self.output = mode, output
        self.ranks: list[psutil.Process] = []  # once they train
        self.started = time.time_ns()
        self.notes = config.parent / f"notes-{self.started}"
        self.notes.mkdir()
        script = (ROOT / "tests" / "processes" / "recipe.py", self.notes, EXAMPLE / mode.script, config)
        options = ("--output_dir", output, "--use_cpu", "--log_level", "info", *args)
        port = str(free_port())
        command = [
            str(part).replace(PORT, port) for part in (*(launcher or accelerate(mode.config)), *script, *options)
        ]
        log, variables = self.notes / "log", environment({"HF_HOME": str(config.parent / "hf")})
        log.touch()
        self.process = forks(OF_RECIPE, variables).start(command, variables, ROOT, log, log)
        self.launcher = psutil.Process(self.process.pid)

    def __enter__(self) -> "Launch":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()

    def log(self) -> str:
        return (self.notes / "log").read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """The launcher and all that it has started; without it, the ranks that it may have left."""
        with suppress(psutil.NoSuchProcess):
            return [*self.launcher.children(recursive=True), self.launcher]
        return [rank for rank in self.ranks if rank.is_running()]

    def kill_all(self) -> None:
        # The processes that are known first, and at once: to look for all others takes longer than a save.
        kill(self.ranks)
        found = self.processes()
        kill(found)
        self.process.wait(60)
        psutil.wait_procs([*self.ranks, *found], 60)

    def kill_rank(self, rank: int) -> None:
        """Kill one of the two; the launcher notices and ends the other."""
        kill(self.ranks[rank : rank + 1])
        self.process.wait(120)

    def until(self, condition: Callable[[], bool], seconds: float = 240) -> bool:
        """Whether `condition` came true before the run ended, asked every millisecond."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            if condition():
                return True
            assert time.monotonic() < deadline, self.log()[-6000:]
            time.sleep(0.001)
        return False

    def training(self) -> bool:
        """Whether both processes are about to step or beyond; if so, they are what was meant to be launched."""
        paths = [self.notes / f"rank{rank}.json" for rank in range(2)]
        if not all(path.exists() for path in paths):
            return False
        for path in paths:
            seen = json.loads(path.read_text())
            with suppress(psutil.NoSuchProcess):  # it is at its end already
                self.ranks.append(psutil.Process(seen["pid"]))
            assert seen["world_size"] == 2
            assert seen["distributed_type"] == self.mode.distributed_type
            assert seen["stage"] == self.mode.stage
            assert seen["optimizer"] == "adopt_hf.optimizer.ADOPTW"
        return True

    def steps(self) -> float:
        return (self.notes / "steps0").stat().st_size / self.mode.calls

    def unfinished(self) -> list[str]:
        """The incomplete checkpoints that have been written to since the launch."""
        found = []
        for folder in self.output.glob("*checkpoint-*"):
            with suppress(FileNotFoundError):  # it was given its name, or removed
                if missing(folder) is not None:
                    changed = max(path.stat().st_mtime_ns for path in (folder, *folder.rglob("*")))
                    if changed > self.started:
                        found.append(folder.name)
        return found

    def finish(self) -> str:
        """Let it run to its end; what it printed."""
        assert self.until(self.training), self.log()[-6000:]
        assert self.process.wait(240) == 0, self.log()[-6000:]
        return self.log()


# ----- a chain -----

OF_A_CHAIN = {
    "max_steps": STEPS,
    "gradient_accumulation_steps": 1,
    "logging_steps": 12,
    "eval_steps": 24,
    "save_steps": SAVE,
    "save_total_limit": 2,
    "disable_tqdm": True,
    "sample_tokens": 0,
}


def resume(chain: Chain, tally: Tally) -> tuple[list[str], list[str]]:
    """The arguments with which the killed run goes on, and what it must say about it.

    Before the first complete checkpoint the recipe can only begin again, and refuses a folder that holds a run.
    """
    complete, skipped = last_complete(chain.killed)
    if complete is None:
        if chain.killed.exists():
            shutil.rmtree(chain.killed)
            tally.anew += 1
        return [], []
    says = [f"skipping {path}, which is incomplete: {reason}" for path, reason in skipped]
    return ["--resume_from_checkpoint", "last"], [*says, f"going on from {complete}"]


def kill_once(mode: Mode, chain: Chain, rng: random.Random, tally: Tally) -> bool:
    """Launch the run and kill it at a random moment. False, and nothing has changed, if it was at its end by then."""
    args, says = resume(chain, tally)
    before = chain.folder / "before"
    shutil.rmtree(before, ignore_errors=True)
    if chain.killed.exists():
        shutil.copytree(chain.killed, before)
    whom, when = rng.choice([0, 1, "all", "all"]), rng.choice(["training", "saving", "saving"])
    # In steps of this launch: any of the first, or the step after which the next save is the one to hit.
    moment = rng.randrange(1, 2 * SAVE) if when == "training" else 1 + SAVE * rng.choice([0, 0, 1, 2])
    delay = rng.uniform(0, 0.03) if when == "training" else 0.06 * rng.random() ** 2  # a save takes some 20 ms
    with Launch(mode, chain.config, chain.killed, *args) as launch:
        alive = launch.until(launch.training)
        assert alive, launch.log()[-6000:]
        alive = launch.until(lambda: launch.steps() >= moment and (when == "training" or launch.unfinished() != []))
        time.sleep(delay)
        saving = bool(launch.unfinished())
        if not alive or launch.process.poll() is not None:
            assert launch.process.wait() == 0, launch.log()[-6000:]
        elif isinstance(whom, int):
            launch.kill_rank(whom)
        else:
            launch.kill_all()
        for line in says:
            assert line in launch.log()
    if missing(chain.killed / f"checkpoint-{STEPS}") is None:
        shutil.rmtree(chain.killed)
        if before.exists():
            shutil.copytree(before, chain.killed)
        return False
    tally.kills += 1
    tally.of_all += whom == "all"
    tally.in_saving += saving
    left = launch.unfinished()
    tally.incomplete += bool(left)
    complete = last_complete(chain.killed)[0]
    print(
        f"{mode}: killed {whom} in {when}, step {moment} + {delay * 1000:.0f} ms; {saving=}; complete: "
        f"{complete and complete.name}; incomplete: {left}"
    )
    return True


def run_chain(mode: Mode, folder: Path) -> Chain:
    tally, start = Tally(), time.monotonic()
    chain = Chain(folder, write_toy(folder, **OF_A_CHAIN), tally)
    with Launch(mode, chain.config, chain.reference) as launch:
        launch.finish()
    rng = random.Random(f"{SEED} {mode}")
    while tally.kills < mode.kills:
        if not kill_once(mode, chain, rng, tally):
            tally.too_late += 1
            assert tally.too_late <= TOO_LATE
    args, says = resume(chain, tally)
    with Launch(mode, chain.config, chain.killed, *args) as launch:
        log = launch.finish()
    for line in says:
        assert line in log
    tally.seconds = time.monotonic() - start
    return chain


@pytest.fixture(scope="module")
def chain_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mode], Chain]:
    """`chain_of(mode)`, run once however many tests ask for it."""
    chains: dict[Mode, Chain] = {}

    def once(mode: Mode) -> Chain:
        if mode not in chains:
            chains[mode] = run_chain(mode, tmp_path_factory.mktemp(str(mode)))
        return chains[mode]

    return once


# ----- what is compared -----


def tensors(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors and numbers in nested containers, by where they stand."""
    if isinstance(value, Tensor):
        return {name: value}
    if isinstance(value, (bool, int, float)):
        return {name: torch.tensor(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {found: t for key, item in items for found, t in tensors(item, f"{name}/{key}").items()}


def weights_and_optimizer(output: Path, scratch: Path) -> dict[str, Tensor]:
    """Of the model that a run ended with, and of its last checkpoint."""
    checkpoint = output / f"checkpoint-{STEPS}"
    assert missing(checkpoint) is None
    found = {f"model/{name}": t for name, t in load_file(output / "model.safetensors").items()}
    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint).as_posix()
        if (path / ".metadata").exists():  # torch's distributed checkpoint
            dcp_to_torch_save(path, scratch / "whole.pt")
            found |= tensors(torch.load(scratch / "whole.pt", weights_only=False), name)
        elif path.suffix == ".safetensors":
            found |= {f"{name}/{key}": t for key, t in load_file(path).items()}
        elif path.name.startswith("optimizer.") or path.name.endswith("_states.pt"):
            found |= tensors(torch.load(path, weights_only=False), name)
    return found


@EACH_MODE
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(
    mode: Mode, chain_of: Callable[[Mode], Chain], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print(f"seed {SEED}")
    chain = chain_of(mode)
    with capsys.disabled():
        print(f"\n{mode}: {chain.tally}")
    assert chain.tally.kills == mode.kills
    whole = weights_and_optimizer(chain.reference, tmp_path)
    killed = weights_and_optimizer(chain.killed, tmp_path)
    assert {"exp_avg", "exp_avg_sq", "step"} <= {part for name in whole for part in name.replace(".", "/").split("/")}
    assert whole.keys() == killed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name


def test_kills_hit_saves(chain_of: Callable[[Mode], Chain], keep: Callable[[str, list[dict[str, Any]]], None]) -> None:
    """Were all kills between two saves, the chains would prove nothing."""
    tallies = [chain_of(mode).tally for mode in MODES]
    keep("kills", [{"config": m.config, "script": m.script, **asdict(t)} for m, t in zip(MODES, tallies, strict=True)])
    assert sum(tally.kills for tally in tallies) == KILLS
    assert sum(tally.in_saving for tally in tallies) >= KILLS // 4
    assert sum(tally.incomplete for tally in tallies) >= KILLS // 7
    assert 0 < sum(tally.of_all for tally in tallies) < KILLS


@EACH_MODE
def test_a_damaged_checkpoint_is_refused(mode: Mode, chain_of: Callable[[Mode], Chain], tmp_path: Path) -> None:
    """A planted mistake: the last process's part of the optimizer is cut off, or gone."""
    chain = chain_of(mode)
    damaged = tmp_path / f"checkpoint-{STEPS}"
    shutil.copytree(chain.reference / damaged.name, damaged)
    assert MARK in os.listdir(damaged)
    file = damaged / mode.optimizer
    size = file.stat().st_size
    if mode.config == "ddp":
        os.truncate(file, size - 1)
        reason = f"{mode.optimizer} has {size - 1} of {size} bytes"
    else:
        file.unlink()
        reason = f"no {mode.optimizer}"
    with Launch(mode, chain.config, tmp_path / "out", "--resume_from_checkpoint", damaged) as launch:
        assert launch.process.wait(240) != 0
        assert f"error: resume_from_checkpoint {damaged} is not a complete checkpoint: {reason}" in launch.log()
        assert not launch.training()
    assert not (tmp_path / "out").exists()
