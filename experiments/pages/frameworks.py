"""The passages of docs/frameworks.md: the lines of each job, and the tables of what has stepped."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from experiments.frameworks import excerpts
from experiments.frameworks.expected import ADOPT, ADOPTW, STEPS
from experiments.frameworks.run import ROWS
from experiments.frameworks.table import ENVIRONMENTS, JOBS
from experiments.harness import machine, pages, runs


def result(row: Mapping[str, Any]) -> str:
    """Return the result of a row, or of a case of one, as the page says it."""
    if row["result"] != "steps":
        return f"{row['result']}: {'; '.join(row['reasons'])}"
    class_ = row["seen"][0]["class"]
    name = class_.rpartition(".")[2]
    if class_ not in (ADOPT, ADOPTW):
        return f"{name} trains, and not ADOPT"
    several = f" in each of {len(row['seen'])} processes" if len(row["seen"]) > 1 else ""
    groups = " and ".join(f"{group['weight_decay']:g}" for group in row["seen"][0]["groups"] if group["tensors"])
    first = row["seen"][0]["groups"][0]
    end = "resumes bit for bit" if row["resumes"] is True else f"no resume: {row['resumes']}"
    return f"{name}, {STEPS} steps{several}; betas {first['betas']}, eps {first['eps']:g}, weight decay {groups}; {end}"


def table() -> str:
    """Return a line for each job, in the order of the page."""
    rows = {row["job"]: row for row in runs.lines(ROWS)}
    lines = []
    for name, job in JOBS.items():
        row = rows[name]
        package = ENVIRONMENTS[job.environment].package.replace("==", " ") if job.environment else "-"
        said = f"{_count(row)}, see below" if job.is_series else result(row)
        lines.append((job.title, package, row.get("python", "-"), row["date"], said))
    return pages.table(("how", "version", "Python", "date", "result"), lines)


def _count(row: Mapping[str, Any]) -> str:
    stepped = [case for case in row["cases"].values() if case["result"] == "steps"]
    return f"{len(stepped)} of {len(row['cases'])} trainers step with ADOPTW and resume bit for bit"


def trainers() -> str:
    """Return a line for each of TRL's trainers."""
    (row,) = (row for row in runs.lines(ROWS) if row["job"] == "trl_trainers")
    lines = [(f"`{name}`", result(case)) for name, case in sorted(row["cases"].items(), key=_order)]
    return pages.table(("trainer", "result"), lines)


def _order(item: tuple[str, Any]) -> tuple[bool, str]:
    return item[0].startswith("experimental"), item[0]


def versions() -> str:
    """Return the versions of torch that the runs had."""
    found = [row.get("versions", {}).get("torch") for row in runs.lines(ROWS)]
    return machine.listed(sorted(filter(None, found)))


TEXTS: dict[str, Callable[[], str]] = {
    "frameworks": table,
    "frameworks of trl": trainers,
    "versions of frameworks": versions,
    **{f"lines of {name}": partial(excerpts.blocks, name) for name in JOBS},
}
