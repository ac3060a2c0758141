"""Parts of an experiment. Each is a run that is kept in a file when it is over, so that it is not run again.

runs/paper/<experiment>/<name>.json holds the settings of a part, its result, and the conditions.
"""

import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.shared.errors import InputError
from experiments.harness import machine

FOLDER = Path("runs/paper")
RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "transformers", "numpy")
THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # of a worker; read when it imports torch
One = Callable[..., dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Part:
    """One run. `name` is the name of its file; `settings` are plain values that determine the result."""

    experiment: str
    name: str
    settings: Mapping[str, Any]

    def file(self, folder: Path) -> Path:
        return folder / self.experiment / f"{self.name}.json"


def run(parts: Iterable[Part], one: One, folder: Path = FOLDER, workers: int = 1) -> list[dict[str, Any]]:
    """Do the parts that are not in `folder`, with `one(**settings)` each. Return the rows of all parts, in order.

    A row is {"name", "settings", "result", "conditions"}.

    Args:
        one: The function that does a part. With several workers, it must be a function of a module.
        workers: The number of parts that run at once, in processes of one thread each. With 1, in this process.

    Raises:
        InputError: If a file has the name of a part and other settings, or workers < 1.
    """
    from tqdm.auto import tqdm  # a step is measured where torch is all that there is

    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    parts = list(parts)
    rows = {part: _read(part, folder) for part in parts}
    todo = [part for part in parts if rows[part] is None]
    do = functools.partial(_do, one=one, folder=folder)
    with tqdm(total=len(todo), desc=parts[0].experiment if parts else "", unit="run") as bar:
        if workers == 1 or len(todo) < 2:
            for part in todo:
                rows[part] = do(part)
                bar.update()
        else:
            os.environ.update(THREADS)
            with multiprocessing.get_context("spawn").Pool(min(workers, len(todo))) as pool:
                for _ in pool.imap_unordered(do, todo):
                    bar.update()
            rows |= {part: _read(part, folder) for part in todo}
    return [rows[part] for part in parts]


def read(experiment: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Return the rows of all finished parts of an experiment, by name."""
    return [json.loads(file.read_text()) for file in sorted((folder / experiment).glob("*.json"))]


def kept(experiment: str, results: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the rows of an experiment that docs/evidence.md is written from; none if there are none."""
    return lines(results / f"{experiment}.jsonl")


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of JSON lines; none if there is no such file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def keep(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, so that a call that is killed leaves the old one or the new one."""
    _write(file, "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows))


def key(settings: Mapping[str, Any]) -> str:
    """Return a name that two runs share if and only if their settings are the same."""
    return json.dumps(dict(settings), sort_keys=True)


def conditions() -> dict[str, Any]:
    """Return the hardware, the versions, the date, the commit, and the load of the machine."""
    found = machine.now(*PACKAGES)
    return {"cpus": found.pop("cores"), **found.pop("versions"), **found}


def _do(part: Part, one: One, folder: Path) -> dict[str, Any]:
    """Do a part, in a worker or not, and keep its row, so that it stays if the parent process is killed."""
    start = time.perf_counter()
    before = conditions()  # the commit may be another one when it is over
    result = one(**part.settings)
    row = {
        "name": part.name,
        "settings": dict(part.settings),
        "result": result,
        "conditions": before | {"seconds": round(time.perf_counter() - start, 1)},
    }
    _write(part.file(folder), json.dumps(row, indent=1))
    return row


def _read(part: Part, folder: Path) -> dict[str, Any] | None:
    file = part.file(folder)
    if not file.exists():
        return None
    row = json.loads(file.read_text())
    if row["settings"] != json.loads(json.dumps(dict(part.settings))):
        raise InputError(f"{file} has other settings, {row['settings']} instead of {dict(part.settings)}: remove it")
    return row


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + f".{os.getpid()}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, file)
