"""The GPT-2 recipe on two hosts with a cable between them: parity, a cut that is mended, a cut for good, other options.

The hosts are network namespaces of this machine with addresses of their own, and share its disk. `accelerate launch
--num_machines 2` is started on each.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from adopt_hf.integrations.checkpoints import MARK, last_complete
from tests.examples.test_gpt2_pretraining import EXAMPLE
from tests.examples.toy import write_toy
from tests.processes.conftest import run
from tests.processes.test_faults import MODES, OF_A_CHAIN, Mode, kill, weights_and_optimizer
from tests.support.forks import OF_RECIPE, Forks, Started, forks
from tests.support.hosts import ADDRESSES, Cable, connected
from tests.support.processes import CONFIGS, ROOT, environment, free_port

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1200)]

EACH_MODE = pytest.mark.parametrize("mode", MODES, ids=str)
RECIPE = ROOT / "tests" / "processes" / "recipe.py"
TIMEOUT = 12  # seconds that a rank waits for the others
SETTINGS = OF_A_CHAIN | {"dropout": 0.0, "save_steps": 12}


@pytest.fixture(scope="module")
def cable() -> Iterator[Cable]:
    with connected() as between:
        yield between


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("hosts"), **SETTINGS)


@pytest.fixture(scope="module")
def other_forks() -> Iterator[Forks]:
    """The processes of the second host are forks of this one: each runs one command at a time."""
    second = Forks(OF_RECIPE, environment())
    yield second
    second.process.kill()


@pytest.fixture
def launch(cable: Cable, config: Path, other_forks: Forks) -> Iterator[Callable[..., "Launch"]]:
    """`launch(mode, output, *args, second=())`: the recipe on both hosts, of which nothing outlives the test."""
    made: list[Launch] = []

    def start(mode: Mode, output: Path, *args: object, second: tuple[object, ...] = (), **variables: str) -> Launch:
        servers = (forks(OF_RECIPE, environment()), other_forks)
        made.append(Launch(cable, servers, config, mode, output, args, second, variables))
        return made[-1]

    yield start
    for one in made:
        one.kill()
    cable.mend()


class Launch:
    """`accelerate launch` on both hosts. `second` and `variables` are more arguments and variables of the second."""

    def __init__(
        self,
        cable: Cable,
        servers: tuple[Forks, Forks],
        config: Path,
        mode: Mode,
        output: Path,
        args: tuple[object, ...],
        second: tuple[object, ...],
        variables: dict[str, str],
    ):
        self.mode, self.output = mode, output
        self.notes = config.parent / f"notes-{time.time_ns()}"
        self.notes.mkdir()
        self.logs = [self.notes / f"log{host}" for host in range(2)]
        self.started: list[Started] = []
        port = free_port()
        for host, log in enumerate(self.logs):
            launcher = ("-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{mode.config}.yaml")
            machines = ("--num_machines", 2, "--machine_rank", host, "--num_processes", 2)
            main = ("--main_process_ip", ADDRESSES[0], "--main_process_port", port)
            without_pdsh = ("--deepspeed_multinode_launcher", "standard") if mode.stage is not None else ()
            script = (RECIPE, self.notes, EXAMPLE / mode.script, config, "--output_dir", output, "--use_cpu")
            options = ("--log_level", "info", "--ddp_timeout", TIMEOUT, *args, *(second if host else ()))
            command = [*launcher, *machines, *main, *without_pdsh, *script, *options]
            more = {
                "HF_HOME": str(config.parent / "hf"),
                "ADOPT_HF_TEST_TIMEOUT": str(TIMEOUT),
                **cable.variables(host),
                **(variables if host else {}),
            }
            log.touch()
            self.started.append(servers[host].start([*map(str, command)], environment(more), ROOT, log, log))

    def log(self) -> str:
        return "\n".join(log.read_text(errors="replace")[-5000:] for log in self.logs)

    def kill(self) -> None:
        for started in self.started:
            if started.poll() is None:
                launcher = psutil.Process(started.pid)
                kill([*launcher.children(recursive=True), launcher])
                started.wait(60)

    def wait(self, seconds: float = 240) -> list[int]:
        """Return the exit codes of both launchers."""
        deadline = time.monotonic() + seconds
        return [started.wait(max(1.0, deadline - time.monotonic())) for started in self.started]

    def steps(self) -> float:
        path = self.notes / "steps0"
        return path.stat().st_size / self.mode.calls if path.exists() else 0

    def until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log()
            assert all(started.poll() is None for started in self.started), self.log()
            time.sleep(0.005)

    def finish(self) -> None:
        assert self.wait() == [0, 0], self.log()


@pytest.fixture(scope="module")
def alone(config: Path) -> dict[str, torch.Tensor]:
    """The weights of one process with the whole batch."""
    folder = config.parent / "alone"
    options = ("--use_cpu", "--per_device_train_batch_size", 8, "--output_dir", folder)
    home = {"HF_HOME": str(config.parent / "hf")}
    run(RECIPE, config.parent, EXAMPLE / "train.py", config, *options, forked=True, env=home)
    return load_file(folder / "model.safetensors")


WHOLE: dict[Mode, Path] = {}


@pytest.fixture
def whole(config: Path, launch: Callable[..., Launch]) -> Callable[[Mode], Path]:
    """`whole(mode)`: the folder of a run that nothing has interrupted, once for all tests."""

    def once(mode: Mode) -> Path:
        if mode not in WHOLE:
            folder = config.parent / f"whole-{mode}"
            one = launch(mode, folder)
            one.finish()
            check(one)
            WHOLE[mode] = folder
        return WHOLE[mode]

    return once


def check(launched: Launch) -> None:
    """Check that two processes trained together, in the mode that was meant."""
    for rank in range(2):
        seen: dict[str, Any] = json.loads((launched.notes / f"rank{rank}.json").read_text())
        assert seen["world_size"] == 2
        assert seen["distributed_type"] == launched.mode.distributed_type
        assert seen["stage"] == launched.mode.stage
        assert seen["optimizer"] == "adopt_hf.optimizer.ADOPTW"


@EACH_MODE
def test_two_hosts_train_the_weights_of_one_process(
    mode: Mode, whole: Callable[[Mode], Path], alone: dict[str, torch.Tensor]
) -> None:
    weights = load_file(whole(mode) / "model.safetensors")
    assert weights.keys() == alone.keys()
    for name, expected in alone.items():
        torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-5)


@EACH_MODE
def test_a_cut_that_is_mended_and_a_cut_for_good(
    mode: Mode, whole: Callable[[Mode], Path], launch: Callable[..., Launch], cable: Cable, tmp_path: Path
) -> None:
    """After the first cut the run goes on. After the second, both hosts say what happened, and the restart resumes."""
    reference, output = whole(mode), tmp_path / "cut"
    cut = launch(mode, output)
    cut.until(lambda: cut.steps() >= 3)
    cable.cut()
    time.sleep(1)
    before = cut.steps()
    time.sleep(1.5)
    assert cut.steps() == before, "a run on two hosts stands still without a network"
    cable.mend()
    cut.until(lambda: (output / "checkpoint-12" / MARK).exists() or (output / "checkpoint-24" / MARK).exists())
    cable.cut()
    began = time.monotonic()
    codes = cut.wait(120)
    assert time.monotonic() - began < 4 * TIMEOUT, "the end is bounded by --ddp_timeout"
    assert 0 not in codes
    complete = last_complete(output)[0]
    assert complete is not None
    for rank, log in enumerate(cut.logs):
        text = log.read_text()
        assert re.search(rf"error: rank {rank} \(on .*\) has lost the connection to another rank", text), text[-5000:]
        assert f"with --resume_from_checkpoint last, which is {complete.name} in {output}" in text
    cable.mend()

    launch(mode, output, "--resume_from_checkpoint", "last").finish()
    expected, resumed = (weights_and_optimizer(folder, tmp_path) for folder in (reference, output))
    assert expected.keys() == resumed.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name


@EACH_MODE
def test_hosts_that_differ_are_refused(mode: Mode, launch: Callable[..., Launch], tmp_path: Path) -> None:
    other = mode.stage is None
    second = ("--optim_args", "beta2=0.99") if other else ()
    variables = {} if other else {"ADOPT_HF_TEST_VERSION": "9.8"}
    differ = launch(mode, tmp_path / "out", second=second, **variables)
    assert 0 not in differ.wait(120)
    what = r"has betas=\[0\.9, 0\.99(99)?\] in param group 0" if other else r"has adopt_hf (9\.8|\d\.\d\.\d)"
    assert re.search(rf"ValueError: rank [01] \(on .*\) {what}, and rank [01] \(on .*\) has ", differ.log())
    assert "they train one model" in differ.log()
