"""ADOPT in other frameworks: `python -m experiments frameworks [JOB ...]`, or `make test-frameworks` for all jobs.

Each framework is installed in an environment of its own, in .venv/frameworks. Its job trains a tiny model offline, once
from the start and once from a checkpoint. torch's global step hook says what has stepped. A row is kept for each job.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.frameworks import environments, excerpts, expected, material
from experiments.frameworks.table import ENVIRONMENTS, JOBS, Job
from experiments.harness import machine, runs
from experiments.harness.machine import RESULTS, ROOT

ROWS = RESULTS / "frameworks.jsonl"
OURS = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
WATCH = Path(__file__).parent / "watch"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
AS_EXPECTED = ("steps", "not run", "read")
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the jobs. Return the exit status: 1 if something did not step as expected."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments frameworks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"Some of {', '.join(JOBS)} (default: all).")
    parser.add_argument("--results", type=Path, default=ROWS, help="File of JSON lines in which the rows are kept.")
    parser.add_argument("--environments", type=Path, default=environments.FOLDER, help="Folder of the environments.")
    args = parser.parse_args(arguments)
    for name in args.jobs:
        if name not in JOBS:
            parser.error(f"there is no job {name!r}: name some of {', '.join(JOBS)}")
    with tempfile.TemporaryDirectory() as folder:
        made, names = Path(folder), args.jobs or list(JOBS)
        if not all(JOBS[name].read for name in names):
            subprocess.run([sys.executable, "-m", material.__name__], cwd=made, env={**os.environ, **OURS}, check=True)
        failed = sum(not _add(args.results, run(name, args.environments, made)) for name in names)
    return int(failed > 0)


def _add(results: Path, row: Row) -> bool:
    """Keep a row instead of an earlier one of the job. Return whether it is as expected."""
    kept = {other["job"]: other for other in runs.lines(results)} | {row["job"]: row}
    runs.keep(results, (kept[job] for job in JOBS if job in kept))
    print(f"{row['job']}: {row['result']}{''.join(f' ({reason})' for reason in row['reasons'])}", flush=True)
    return row["result"] in AS_EXPECTED


def run(name: str, folder: Path, made: Path) -> Row:
    """Install a job's framework, run the job twice, and return its row.

    Args:
        folder: The folder of the environments.
        made: The folder with the model and the data.
    """
    job = JOBS[name]
    row: Row = {"job": name, "lines": excerpts.lines(name)}
    if job.read:
        return {**row, "date": machine.now()["date"], "result": "read", "reasons": [job.read]}
    try:
        python = environments.install(job.environment, ENVIRONMENTS[job.environment], folder)
    except subprocess.CalledProcessError as error:
        return {**row, **_about(job, {}), "result": "not run", "reasons": [f"pip fails with {error.returncode}"]}
    package = ENVIRONMENTS[job.environment].package.partition("==")[0]
    about = _about(job, environments.versions(python, (package, *job.packages)))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) / name
        for files in (made, *(excerpts.JOBS / one for one in (job.files_of, name) if one)):
            shutil.copytree(files, work, dirs_exist_ok=True)
        stepped = Path(temporary) / "stepped"
        if job.is_series:
            problem = _call(["bash", "-eu", "job.sh"], python, work, _stepping(stepped))
            return {**row, **about, **(_failed(problem) if problem else _series(job, stepped))}
        problem = _call(["bash", "-eu", "job.sh"], python, work, _stepping(stepped / "whole"))
        if not problem and job.expected.resumes is True:
            checkpoint = f"out/checkpoint-{expected.SAVED}"
            problem = _call(["bash", "-eu", "job.sh"], python, work, _stepping(stepped / "resumed", checkpoint))
        return {**row, **about, **(_failed(problem) if problem else _outcome(job, stepped))}


def _failed(problem: str) -> Row:
    return {"result": "fails", "reasons": [problem]}


def _outcome(job: Job, stepped: Path) -> Row:
    """Return what the records of a training say."""
    whole, resumed = expected.records(stepped / "whole"), expected.records(stepped / "resumed")
    reasons = expected.differences(job.expected, whole, resumed)
    return {
        "result": "fails" if reasons else "steps",
        "reasons": reasons,
        "resumes": job.expected.resumes,
        "seen": _short(whole),
    }


def _series(job: Job, stepped: Path) -> Row:
    """Return what the records of a series say, each for itself. cases.json has the reasons of what did not train."""
    told = json.loads((stepped / "cases.json").read_text(encoding="utf-8"))
    cases = {
        name: _failed(problem) if problem else _outcome(job, stepped / name) for name, problem in told["cases"].items()
    }
    cases |= {name: {"result": "not run", "reasons": [reason]} for name, reason in told["not run"].items()}
    fails = [name for name, case in cases.items() if case["result"] not in AS_EXPECTED]
    return {"result": "fails" if fails else "steps", "reasons": fails, "cases": cases}


def _about(job: Job, versions: Mapping[str, str]) -> Row:
    conditions = machine.now()
    return {
        "version": ENVIRONMENTS[job.environment].package.partition("==")[2],
        **{key: conditions[key] for key in ("date", "python", "commit")},
        "versions": dict(versions),
    }


def _stepping(records: Path, checkpoint: str = "") -> dict[str, str]:
    """Return the variables of a run whose steps are written down; `RESUME` is for job.sh."""
    return {"PYTHONPATH": str(WATCH), "STEPPED": str(records), "RESUME": checkpoint}


def _call(command: Sequence[str], python: Path, work: Path, variables: Mapping[str, str]) -> str:
    """Call a command in the folder of the job. Return "", or the end of what it said if it fails."""
    environment = {
        **os.environ,
        **OFFLINE,
        "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
        "HF_HOME": str(work.parent / "cache"),
        **variables,
    }
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    print(done.stdout[-4000:], done.stderr[-8000:], sep="\n", file=sys.stderr)
    last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
    return f"{command[-1]} ends with {done.returncode}: {last}"


def _short(seen: Sequence[expected.Record]) -> list[Row]:
    """Return what the page shows of the records, without hashes, which depend on the machine."""
    keys = ("weight_decay", "betas", "eps", "tensors")
    return [
        {
            "class": record["class"],
            "steps": len(record["steps"]),
            "groups": [{key: group.get(key) for key in keys} for group in record["groups"]],
        }
        for record in seen
    ]
