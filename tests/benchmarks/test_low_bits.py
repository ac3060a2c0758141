"""benchmarks.low_bits and benchmarks.state_formats: real runs at toy size, and the docs are what the results give."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adopt_hf import ADOPT
from benchmarks import low_bits, state_formats
from benchmarks.fresh import ROOT
from benchmarks.kahan import KahanADOPT
from benchmarks.low_bits import BEGIN, END, PAGE, RESULTS


@pytest.mark.slow
def test_real_runs(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    variants = ["ADOPT", "ADOPT, bf16 parameters, stochastic, 8 bits"]
    command = [sys.executable, "-m", "benchmarks.low_bits", "--recipes", "gpt2", "--seeds", "0", "--max_steps", "4"]
    command += ["--variants", *variants, "--folder", str(tmp_path / "runs"), "--results", str(results)]
    command += ["--page", str(page), "--plot", str(tmp_path / "plot.png")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=500)
    rows = {row["settings"]["variant"]: row["result"] for row in map(json.loads, results.read_text().splitlines())}
    assert list(rows) == variants
    assert all(4 < row["eval_loss"] < 8 for row in rows.values())
    whole, fewer = (rows[variant] for variant in variants)
    assert fewer["state_bytes"] < 0.55 * whole["state_bytes"]
    assert fewer["parameters_bytes"] < 0.6 * whole["parameters_bytes"]
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert all(f"| {variant} |" in text for variant in variants)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_kahan_keeps_what_rounding_loses() -> None:
    """Updates far below the last place of a bfloat16: its float32 twin moves, it moves with it, and ADOPT does not."""
    dtypes = (torch.float32, torch.bfloat16, torch.bfloat16)
    exact, kahan, nearest = (torch.ones(500, dtype=dtype, requires_grad=True) for dtype in dtypes)
    optimizers = [ADOPT([exact], lr=1e-4), KahanADOPT([kahan], lr=1e-4), ADOPT([nearest], lr=1e-4)]
    for _ in range(100):
        for p, optimizer in zip((exact, kahan, nearest), optimizers, strict=True):
            p.grad = torch.ones_like(p)
            optimizer.step()
    assert kahan.dtype is optimizers[1].state[kahan]["lost"].dtype is torch.bfloat16
    torch.testing.assert_close(kahan.float() + optimizers[1].state[kahan]["lost"].float(), exact, rtol=0, atol=2e-5)
    assert (exact < 0.992).all()
    assert (nearest == 1).all()


def test_the_docs_are_the_results() -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    assert {row["settings"]["seed"] for row in rows} == {0, 1, 2}
    text = PAGE.read_text()
    assert low_bits.inserted(text, low_bits.report(rows)) == text


def test_a_page_without_markers_is_an_error() -> None:
    with pytest.raises(ValueError, match="lacks the markers"):
        low_bits.inserted("nothing", "new")


def test_formats_tell_nearest_from_stochastic() -> None:
    cells = state_formats.measure("stationary", 300)
    octaves = {name: float(cell.split(";")[0]) for name, cell in cells.items()}
    assert octaves["decaying scale, 2 to 5 bits (`state_bits=8`)"] < 0.3
    assert octaves["dynamic 8-bit map, nearest"] > 0.6
    assert octaves["bfloat16, stochastic (`state_bits=16`)"] < octaves["bfloat16, nearest"]


def test_the_docs_have_every_format() -> None:
    text = state_formats.PAGE.read_text()
    assert all(f"| {name} |" in text for name in state_formats.formats())
