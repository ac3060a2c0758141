"""experiments/paper/gpt2_curves.py: the verdicts, and the command at toy size."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.harness import command
from experiments.paper import gpt2_curves
from tests.experiments.paper_command import call, shared_home
from tests.support.curves import FALLING, with_bump


def row(optimizer: str, batch: str, seed: int, loss: float | None, losses: list[float | None]) -> dict[str, Any]:
    result = {
        "steps": list(range(1, len(losses) + 1)), "losses": losses, "eval_steps": [100, 200],
        "eval_losses": [4.0, loss], "eval_loss": loss, "sequences": {"large": 20, "small": 4}[batch],
        "parameters": 1000,
    }  # fmt: skip
    settings = {"quick": True, "optimizer": optimizer, "batch": batch, "seed": seed, "block_size": 64}
    return {"settings": settings, "result": result}


ADOPTW = "ADOPTW, beta2_warmup=1"
NOISE = (0.01, 0.0, -0.01)  # of a pair; what the seed does to both is a hundred times that


def made_up(adam: list[float], adopt: list[float], shift: float) -> list[dict[str, Any]]:
    """Rows whose small-batch curves are these; ADOPT's loss is `shift` above AdamW's."""
    return [
        row(name, batch, seed, 3.0 + seed + (shift + NOISE[seed] if name == "ADOPT" else 0), list(curve))
        for name, curve in (("AdamW", adam), ("ADOPT", adopt), ("ADOPT, beta2=0.999", FALLING), (ADOPTW, FALLING))
        for batch in gpt2_curves.BATCHES
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("adam", "adopt", "shift", "verdicts"),
    [
        (with_bump(2.0), FALLING, -0.5, ["reproduced"] * 3 + ["contradicted"]),
        (FALLING, with_bump(2.0), 0.5, ["contradicted"] * 3 + ["reproduced"]),
        (FALLING, FALLING, 0.005, ["not at this scale"] * 4),
    ],
)
def test_verdicts_follow_from_the_numbers(
    adam: list[float], adopt: list[float], shift: float, verdicts: list[str], tmp_path: Path
) -> None:
    rows = made_up(adam, adopt, shift)
    assert [claim.verdict for claim in gpt2_curves.claims(rows)] == verdicts
    assert f"ADOPT {shift:+.3f} ± 0.025 (3 pairs)" in gpt2_curves.claims(rows)[1].ours
    gpt2_curves.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_diverged_is_said_to_have() -> None:
    rows = made_up(FALLING, FALLING, -0.5)
    rows[0]["result"]["eval_loss"] = None
    assert "less AdamW: ADOPT diverged (3 pairs)" in gpt2_curves.claims(rows)[1].ours
    assert gpt2_curves.claims(rows)[1].verdict == "not at this scale"
    assert "| large, 20 sequences | AdamW | diverged |" in gpt2_curves.table(rows)


def test_what_has_not_been_run_has_no_verdict(tmp_path: Path) -> None:
    rows = [row for row in made_up(FALLING, FALLING, -0.5) if row["settings"]["optimizer"] != ADOPTW]
    *others, warm = gpt2_curves.claims(rows)
    assert (warm.verdict, warm.ours) == ("not at this scale", "ADOPTW less ADOPT: no pairs")
    assert all("ADOPTW" not in claim.ours for claim in others)
    assert "ADOPTW" not in gpt2_curves.table(rows)
    gpt2_curves.plot(rows, tmp_path / "plot.png")


def test_full_size_is_the_papers() -> None:
    assert {name: a * b for name, (a, b) in gpt2_curves.BATCH[False].items()} == {"large": 480, "small": 96}
    for quick in (True, False):
        sizes = {name: a * b for name, (a, b) in gpt2_curves.BATCH[quick].items()}
        assert sizes["large"] == 5 * sizes["small"]
    assert len({part.name for part in gpt2_curves.parts(quick=True)}) == 24


@pytest.mark.slow
def test_the_command_at_toy_size(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    toy = ["--set", "max_steps=12", "warmup_steps=2", "n_embd=8", "block_size=8", "eval_steps=6", "seed=0"]
    result = call(
        "gpt2_curves",
        "--quick",
        "--workers",
        1,
        "--folder",
        tmp_path / "runs",
        *toy,
        home=shared_home(tmp_path_factory),
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(file.read_text()) for file in (tmp_path / "runs" / "gpt2_curves").glob("*.json")]
    assert len(rows) == 8
    for found in rows:
        assert found["result"]["steps"] == list(range(1, 13))
        assert found["result"]["losses"][0] == pytest.approx(math.log(1024), rel=0.02)
        assert found["result"]["eval_steps"][:2] == [6, 12]
        assert found["result"]["sequences"] == {"large": 20, "small": 4}[found["settings"]["batch"]]
    assert len({found["result"]["eval_loss"] for found in rows}) == 8, "eight different runs"
    assert "| small, 4 sequences | ADOPT, beta2=0.999 |" in result.stdout
    assert (tmp_path / "runs" / "gpt2_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--set", "optimizer=SGD"],
            "optimizer must be one of 'AdamW', 'ADOPT', 'ADOPT, beta2=0.999', 'ADOPTW, beta2_warmup=1', got",
        ),
        (["--set", "n_embd=63"], "stdlib.yaml does not take"),
        (["--set", "steps=3"], "--set takes NAME=VALUE with a name among"),
        (["--workers", "0"], "workers must be at least 1, got 0"),
    ],
)
def test_bad_input(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpt2_curves", "--workers", "1", "--folder", str(tmp_path / "runs"), *argv])
    with pytest.raises(SystemExit) as exit_:
        command.main(gpt2_curves)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()
