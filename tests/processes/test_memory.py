"""The bytes of optimizer state as measured in one and in two processes are those of `python -m adopt_hf memory`.

memory_job.py counts, in every mode, the storages of what the optimizer keeps after two steps.
"""

import importlib.util
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from adopt_hf.memory import MODES, state_bytes
from tests.processes.conftest import torchrun

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"),
]

WORLD_SIZES = (1, 2)
MEASURED = [  # mode, offload
    ("ddp", None),
    ("fsdp", None),
    *((f"zero{stage}", None) for stage in (0, 1, 2, 3)),
    *((f"zero{stage}", "optimizer") for stage in (1, 2, 3)),
    ("zero3", "parameters"),
]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """The report of each process, by number of processes."""
    result = {}
    for n in WORLD_SIZES:
        folder = tmp_path_factory.mktemp(f"processes{n}")
        torchrun(n, "memory_job.py", folder)
        result[n] = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(n)]
    return result


def bytes_of(report: dict[str, Any], mode: str, precision: str, offload: str | None) -> dict[str, Any]:
    """The one row of a report that is about this."""
    key = {"mode": mode, "precision": precision, "offload": offload}
    (row,) = (row for row in report["results"] if row.items() >= key.items())
    return row


def test_it_was_measured(
    reports: dict[int, list[dict[str, Any]]], keep: Callable[[str, list[dict[str, Any]]], None]
) -> None:
    """In so many processes, of a model whose groups and tensors need padding, in all modes; float32 throughout."""
    keep(
        "state_bytes",
        [{"processes": n, "rank": r} | row for n in WORLD_SIZES for r in range(n) for row in reports[n][r]["results"]],
    )
    assert {mode for mode, _ in MEASURED} == set(MODES)
    for n in WORLD_SIZES:
        assert [report["world_size"] for report in reports[n]] == [n] * n
        for report in reports[n]:
            assert {tuple(row["dtypes"]) for row in report["results"]} == {("torch.float32",)}
    groups = reports[2][0]["shapes"]
    assert any(sum(map(math.prod, group)) % 4 for group in groups)
    assert any(math.prod(shape) % 2 for group in groups for shape in group)
    assert any(shape[0] % 2 for group in groups for shape in group)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("mode", "offload"), MEASURED)
@pytest.mark.parametrize("n", WORLD_SIZES)
def test_exact(n: int, mode: str, offload: str | None, precision: str, reports: Any) -> None:
    groups = reports[n][0]["shapes"]
    expected = state_bytes(groups, mode=mode, world_size=n, precision=precision, offload=offload)
    rows = [bytes_of(report, mode, precision, offload) for report in reports[n]]
    assert (rows[0]["moments"], rows[0]["master"]) == (expected.moments, expected.master)
    for row in rows[1:]:
        if mode == "fsdp":  # whole rows: others hold less, and all of them together the model
            assert row["moments"] < expected.moments
        else:
            assert (row["moments"], row["master"]) == (expected.moments, expected.master)
    if mode == "fsdp":
        assert sum(row["moments"] for row in rows) == 8 * sum(math.prod(shape) for group in groups for shape in group)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("n", WORLD_SIZES)
def test_fsdp1_to_its_padding(n: int, precision: str, reports: Any) -> None:
    """FSDP1 cuts the whole unit, made flat, wherever the cut falls; each tensor in it begins at 16 bytes."""
    groups = reports[n][0]["shapes"]
    tensors = [math.prod(shape) for group in groups for shape in group]
    held = [bytes_of(report, "fsdp1", precision, None) for report in reports[n]]
    assert [row["master"] for row in held] == [0] * n
    assert sum(row["moments"] for row in held) == 8 * sum(tensors)
    expected = state_bytes(sum(tensors), mode="fsdp", world_size=n, precision=precision)
    largest = max(row["moments"] for row in held)
    assert expected.moments <= largest < expected.moments + 8 * 8 * len(tensors)
