"""Every step gives the bits that it gave when the golden file was written.

The backends "reference" and "fused" give the same bits on every x86 processor. "foreach" uses torch's own operations,
which contract a product and a sum where the processor can (AVX2 or AVX512).
"""

import shutil

import pytest
import torch

from tests.golden import files, trajectories
from tests.golden.cases import CASES, Case

WHY_NOT = {
    "reference": None,
    "foreach": "torch has no vectors of AVX2 here" if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else None,
    "fused": None if any(map(shutil.which, ("cc", "gcc", "clang"))) else "no C compiler is there",
}


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, list[str]]]:
    rows: dict[str, dict[str, list[str]]] = files.read(trajectories.NAME)
    return rows


@pytest.mark.parametrize(
    ("case", "backend"),
    [pytest.param(case, backend, id=f"{case.name}, {backend}") for case, backend in trajectories.all_runs()],
)
def test_the_bits_are_those_of_the_golden_file(
    case: Case, backend: str, golden: dict[str, dict[str, list[str]]]
) -> None:
    if (reason := WHY_NOT[backend]) is not None:
        pytest.skip(reason)
    files.check(golden[case.name][backend], case.run(backend))


def test_the_golden_file_has_these_cases_and_no_others(golden: dict[str, dict[str, list[str]]]) -> None:
    assert {name: list(rows) for name, rows in golden.items()} == {case.name: list(case.backends) for case in CASES}
