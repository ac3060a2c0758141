"""Checkpoints of ZeRO that an earlier commit wrote are loaded, and the run goes on with the same bits.

Two launches: two processes go on from what two have written, and one from the universal checkpoint.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.golden import files, zero
from tests.golden.cases import HALF
from tests.golden.zero_job import UNIVERSAL

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def golden() -> Any:
    return files.read(zero.NAME)


def test_two_processes_go_on(golden: Any, tmp_path: Path) -> None:
    ends = {rank: {name: rows[HALF:] for name, rows in found.items()} for rank, found in golden.items()}
    files.check(ends, zero.launch("read", 2, zero.FOLDER, tmp_path))


def test_one_process_goes_on_from_the_universal_checkpoint(golden: Any, tmp_path: Path) -> None:
    """The weights are compared. The state of one process is that of two, joined."""
    found = zero.launch("universal", 1, zero.FOLDER, tmp_path)["rank 0"]["universal"]
    rows = golden["rank 0"][UNIVERSAL][HALF:]
    files.check(list(map(weights, rows)), list(map(weights, found)))


def weights(row: str) -> str:
    """Return a row without the digest of the state."""
    before, _, after = row.partition(", state ")
    return before + after[after.index(":") :]
