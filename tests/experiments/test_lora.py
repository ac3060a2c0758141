"""experiments/lora: what it counts, what it writes, and that an interrupted one goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import adopt_hf
from experiments.pages import lora

pytest.importorskip("trl", reason="trl is not installed")

from experiments.harness import runs
from experiments.lora import clipping, sweep
from tests.examples.test_llama_instruct import EXAMPLE, make_base
from tests.support.processes import python

ROOT = Path(__file__).parents[2]
MARKERS = "<!-- sweep: python -m experiments lora -->\nold\n<!-- end of sweep -->"


def row(optimizer: str, lr: float, seed: int, loss: float | None, clipped: float | None = None) -> dict[str, Any]:
    return {
        "optimizer": optimizer, "lr": lr, "seed": seed, "steps": 5, "eval_loss": loss, "clipped_first": clipped,
        "clipped": clipped, "date": "2026-01-02", "hardware": "a CPU", "versions": {"torch": "1"}, "python": "3",
    }  # fmt: skip


def test_the_share_that_is_clipped() -> None:
    p = torch.nn.Parameter(torch.zeros(5))
    optimizer = adopt_hf.ADOPT([p], eps=1e-6)
    p.grad = torch.ones(5)
    assert clipping.clipped_share(optimizer) is None
    optimizer.step()
    state = optimizer.state[p]
    state["step"] = torch.tensor(16.0)  # the bound is 2
    state["exp_avg_sq"].copy_(torch.tensor([1.0, 1.0, 4.0, 0.0, 4.0]))
    p.grad = torch.tensor([2.0, 1.9, -5.0, 9.0, 3.9])  # u = 2, 1.9, -2.5, not observed yet, 1.95
    assert clipping.clipped_share(optimizer) == 2 / 4
    share = clipping.ClippedShare()
    share.on_pre_optimizer_step(optimizer=optimizer)
    share.on_pre_optimizer_step(optimizer=torch.optim.AdamW([p]))
    assert share.shares == [0.5, None]
    assert share.mean() == 0.5
    assert share.mean(1) is None


def test_the_report(tmp_path: Path) -> None:
    rows = [row("AdamW", lr, seed, loss) for lr in (0.1, 0.3) for seed, loss in ((0, 1.0), (1, 3.0), (2, 2.0))]
    rows += [row("ADOPT", 0.1, 0, 1.5, 0.2), row("ADOPT", 0.1, 1, None, 0.4)]
    rows += [row("ADOPT", 0.3, seed, loss, 0.25) for seed, loss in ((0, 1.1), (1, 3.3), (2, 1.9))]
    rows += [row("ADOPT, beta2_warmup", 0.1, seed, loss, 0.05) for seed, loss in ((0, 1.2), (1, 3.1), (2, 2.3))]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKERS}\nafter\n")
    sweep.write_report(rows, page, tmp_path / "plot.png")
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text  # noqa: PT018
    assert "| AdamW | 2.000 ± 1.000 | 2.000 ± 1.000 |" in text
    assert "| ADOPT | diverged | 2.100 ± 1.100 |" in text
    assert "| ADOPT, all steps | 30.0 ± 10.0 | 25.0 ± 0.0 |" in text
    assert "Mean over seeds 0, 1, 2 and half their range; 5 steps" in text
    assert "Measured on 2026-01-02 on a CPU" in text
    sweep.write_report(rows, page, tmp_path / "plot.png")
    assert page.read_text() == text
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    page.write_text("no markers")
    with pytest.raises(sweep.InputError, match="lacks the markers"):
        sweep.write_report(rows, page, tmp_path / "plot.png")


def test_the_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "LARGEST_RATE", 0.3)
    losses = {"AdamW": (1.0, 3.0, 2.0), "ADOPT": (1.1, 3.3, 1.9), "ADOPT, beta2_warmup": (1.2, 3.2, 2.2)}
    rows = [
        row(name, lr, seed, loss + worse, 0.2 + lr)
        for name, three in losses.items()
        for lr, worse in ((0.1, 0.5 if name == "ADOPT" else 0.0), (0.2, 0.0 if name == "ADOPT" else 0.5))
        for seed, loss in enumerate(three)
    ]
    text = lora.words(rows)
    assert "of 2 learning rates, seeds in pairs: AdamW 2.000, ADOPT without the warm-up 2.100, ADOPT with" in text
    assert "ADOPT without the warm-up is behind AdamW in 2 of 3 seeds (+0.100, +0.300, -0.100)" in text
    assert "the 95 % interval of the mean, -0.397 to +0.597, holds 0." in text  # 0.1 +- 4.303 * 0.2 / sqrt(3)
    assert (
        "in 3 of 3 seeds (+0.200, +0.200, +0.200); the 95 % interval of the mean, +0.200 to +0.200, is above 0." in text
    )
    assert "is 0.1 for AdamW, 0.1 for ADOPT with the warm-up and 0.2 without it" in text
    assert "Without it ADOPT at AdamW's best rate ends 0.50 nats above its own best." in text
    assert "without it 30 to 40 % of the elements are clipped" in text


def test_the_kept_results_have_every_run() -> None:
    """tests/test_docs.py compares the page with them."""
    rows = runs.lines(sweep.RESULTS)
    assert {(r["optimizer"], r["lr"], r["seed"]) for r in rows} == {
        (name, lr, seed) for name in sweep.OPTIMIZERS for lr in sweep.RATES for seed in sweep.SEEDS
    }


@pytest.mark.slow
def test_a_sweep_that_goes_on(tmp_path: Path) -> None:
    settings = yaml.safe_load((EXAMPLE / "configs" / "stdlib_lora.yaml").read_text())
    settings |= {"model_name_or_path": str(make_base(tmp_path / "base")), "max_train_records": 64, "max_length": 96}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "page.md").write_text(MARKERS)
    command = ["-m", "experiments", "lora", "--config", tmp_path / "toy.yaml", "--max_steps", "2"]
    command += ["--seeds", "0", "--workers", "1", "--results", tmp_path / "results.jsonl"]
    command += ["--page", tmp_path / "page.md", "--plot", tmp_path / "plot.png", "--folder", tmp_path / "runs"]

    def run(*more: str) -> list[dict[str, Any]]:
        python(*command, *more, cwd=ROOT, env={"HF_HOME": str(tmp_path / "hf")})
        return [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]

    rows = run("--rates", "0.001")
    assert [r["optimizer"] for r in rows] == ["AdamW", "ADOPT", "ADOPT, beta2_warmup"]
    assert all(0 < r["eval_loss"] < 10 for r in rows)
    assert [r["clipped"] is None for r in rows] == [True, False, False]
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:2]))
    (tmp_path / "runs" / "lora" / "ADOPT, beta2_warmup-lr0.001-0.json").unlink()  # interrupted in the third run
    assert run("--rates", "0.001")[:2] == rows[:2]
    assert run("--rates", "0.001")[2]["eval_loss"] == rows[2]["eval_loss"]
    assert "| ADOPT, beta2_warmup |" in (tmp_path / "page.md").read_text()
