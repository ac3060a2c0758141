"""What the docs show is what the code says: tables are not forgotten when the code moves on."""

from pathlib import Path

import pytest

from adopt_hf.integrations import memory
from adopt_hf.integrations.zero import OTHER_WORLD_SIZE
from tests.distributed.matrix import BEGIN, END, NOT_HERE, Matrix

ROOT = Path(__file__).parents[1]
INTEGRATIONS = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]


def test_the_matrix_in_the_docs_has_every_mode_and_nothing_failed() -> None:
    shown = rows(INTEGRATIONS.split(BEGIN)[1].split(END)[0])
    wanted = rows(Matrix().table())
    assert shown[0] == wanted[0]
    assert [row[0] for row in shown] == [row[0] for row in wanted]
    skipped = [f"skipped: {why}" for why in NOT_HERE.values()]
    for row in shown[2:]:
        if row[1] in skipped:
            continue
        assert row[2] == "the reference" or row[2].endswith("of the way") or float(row[2]) < 1e-6, row
        assert row[3:5] == row[6:8] == ["bit for bit", "yes"], row


def test_the_memory_table_in_the_docs_is_the_commands() -> None:
    assert memory.table() in INTEGRATIONS


def test_the_docs_write_the_converter_as_the_error_message_does() -> None:
    assert OTHER_WORLD_SIZE.split("`python ")[1].split()[1] in INTEGRATIONS


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "accelerate_configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_launch_config_has_a_row(path: Path) -> None:
    """cpu and ddp have theirs in the table as well: a new file without a measurement fails here."""
    names = {row[0].split()[0] for row in rows(INTEGRATIONS.split(BEGIN)[1].split(END)[0])}
    assert path.stem in names
