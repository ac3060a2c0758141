"""The wheel's kernel is no slower than the compiler's, by the kept result; and the command that measures it."""

import json
import shutil
import statistics
from pathlib import Path

import pytest

import hatch_build
from experiments.step import prebuilt


def test_the_kept_result_says_that_the_wheel_is_no_slower() -> None:
    """To 5 %, over all formats, on a machine that did other work."""
    result = json.loads(prebuilt.RESULTS.read_text(encoding="utf-8"))
    rows = result["rows"]
    assert {row["format"] for row in rows} == set(prebuilt.FORMATS)
    ratios = [row["to_native"][prebuilt.WHEEL]["median"] for row in rows]
    assert statistics.median(ratios) < 1.05
    fallbacks = [row["to_native"][prebuilt.FALLBACK]["median"] for row in rows if "bit" not in row["format"]]
    assert statistics.median(fallbacks) > 3  # backends.SLOWER


@pytest.mark.slow
@pytest.mark.skipif(hatch_build.here() is None, reason="a wheel with a kernel is built on Linux")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")
def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prebuilt.json"
    assert prebuilt.main(["--quick", "--formats", "float32", "--out", str(out)]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["format"] for row in rows] == ["float32"]
    assert all(row["ms"][prebuilt.WHEEL]["median"] > 0 for row in rows)
    assert "wheel / native" in capsys.readouterr().out
