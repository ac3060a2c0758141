"""The golden trajectories: the bits of parameters and state after each step of each case."""

from tests.golden import files
from tests.golden.cases import CASES, Case

NAME = "trajectories"


def all_runs() -> list[tuple[Case, str]]:
    """Return each case with each of its backends."""
    return [(case, backend) for case in CASES for backend in case.backends]


def write() -> None:
    """Write the golden file."""
    rows: dict[str, dict[str, list[str]]] = {}
    for case, backend in all_runs():
        rows.setdefault(case.name, {})[backend] = case.run(backend)
    files.write(NAME, rows)
