"""A capturable step over shards: all processes agree on whether a first gradient was all zero."""

import json
from pathlib import Path

import pytest

from tests.processes.conftest import torchrun

pytestmark = pytest.mark.distributed


def test_shards_count_their_steps_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And train the weights of one process; "fused" is the Triton kernel in its interpreter where it is capturable."""
    pytest.importorskip("triton", reason="the Triton kernel needs Triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    torchrun(2, "capturable_job.py", tmp_path)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    steps, weights = first.pop("alone")
    assert steps == 5
    assert len(first) == 4
    for how, (own_steps, own_weights) in first.items():
        assert second[how][0] == own_steps == steps, how
        for row, expected in zip(own_weights, weights, strict=True):
            assert row == pytest.approx(expected, abs=1e-6), how
