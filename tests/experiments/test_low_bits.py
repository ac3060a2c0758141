"""The experiments low_bits and state_formats: real runs at toy size, and the docs are what the results give."""

import json
import sys
from pathlib import Path

import pytest
import torch

from adopt_hf import ADOPT
from experiments.harness.machine import ROOT
from experiments.low_bits import run as low_bits
from experiments.low_bits import state_formats
from experiments.low_bits.kahan import KahanADOPT
from experiments.low_bits.run import RESULTS
from tests.support.processes import python


@pytest.mark.slow
def test_real_runs(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "rows.jsonl"
    page.write_text("before\n<!-- low bits: a command -->\n\n<!-- end of low bits -->\nafter\n")
    variants = ["ADOPT", "ADOPT, bf16 parameters, stochastic, 8 bits"]
    command = ["-m", "experiments", "low_bits", "--recipes", "gpt2", "--seeds", "0", "--max_steps", "4"]
    command += ["--variants", *variants, "--folder", str(tmp_path / "runs"), "--results", str(results)]
    command += ["--page", str(page), "--plot", str(tmp_path / "plot.png")]
    python(*command, cwd=ROOT)
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


def test_the_kept_results_have_every_run() -> None:
    """tests/test_docs.py compares the page with them."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    runs = {(row["settings"]["recipe"], row["settings"]["variant"], row["settings"]["seed"]) for row in rows}
    variants = [variant for variant in low_bits.VARIANTS if "Kahan" not in variant]
    assert runs == {(recipe, variant, seed) for recipe in low_bits.RECIPES for variant in variants for seed in range(3)}


def test_formats_tell_nearest_from_stochastic() -> None:
    octaves = {name: numbers["octaves"] for name, numbers in state_formats.measure("stationary", 300).items()}
    assert octaves["decaying scale, 2 to 5 bits (`state_bits=8`)"] < 0.3
    assert octaves["dynamic 8-bit map, nearest"] > 0.6
    assert octaves["bfloat16, stochastic (`state_bits=16`)"] < octaves["bfloat16, nearest"]


def test_the_kept_results_have_every_format() -> None:
    """tests/test_docs.py compares the page with them."""
    found = json.loads(state_formats.RESULTS.read_text())
    assert list(found["formats"]) == list(state_formats.formats())
    assert all(list(courses) == list(state_formats.COURSES) for courses in found["formats"].values())


def test_formats_are_kept_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--steps", "3", "--results", str(tmp_path / "formats.json")])
    state_formats.main()
    found = json.loads((tmp_path / "formats.json").read_text())
    assert "blocks of 256, 3 steps, beta2 = 0.9999, seed 0. Measured on 20" in state_formats.table(found)
    found["formats"]["bfloat16, nearest"]["growing"] = {"octaves": 0.29, "mean": 1.004, "zero": 0.002}
    assert "| 0.29; 1.00; 0.2 % |" in state_formats.table(found)
