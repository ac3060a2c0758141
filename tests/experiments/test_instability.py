"""experiments/paper/instability.py: which runs diverged, the sign test, and the command at toy size."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.harness.runs import InputError
from experiments.paper import instability
from tests.experiments.paper_command import call, shared_home


def made_up(ends: dict[tuple[str, float], list[float | None]]) -> list[dict[str, Any]]:
    """Rows of all parts that begin at 7.0 and end at 6.0, but for those that are named: an end a seed."""
    rows = []
    for part in instability.parts(True):
        s = part.settings
        end = ends.get((s["optimizer"], s["lr"]), [6.0] * 8)[s["seed"]]
        losses = [7.0, *[8.0 if end is None or end > 7 else 6.5] * 20]
        result = {"losses": losses, "steps": list(range(1, 22)), "eval_loss": end, "parameters": 1000}
        rows.append({"settings": dict(s), "result": result})
    return rows


HIGH, LOW = 9.0, 6.0


@pytest.mark.parametrize(
    ("adam", "adopt", "verdict", "says"),
    [
        ([HIGH] * 8, [LOW] * 8, "reproduced", "only AdamW diverged in 8, only ADOPT in 0"),
        ([None] * 6 + [LOW] * 2, [LOW] * 8, "reproduced", "only AdamW diverged in 6"),
        ([HIGH] * 5 + [LOW] * 3, [LOW] * 8, "not at this scale", "only AdamW diverged in 5"),
        ([HIGH] * 8, [HIGH] * 8, "not at this scale", "only AdamW diverged in 0, only ADOPT in 0"),
        ([HIGH, HIGH] + [LOW] * 6, [HIGH] * 8, "contradicted", "only AdamW diverged in 0, only ADOPT in 6"),
        ([HIGH] * 3 + [LOW] * 5, [HIGH] * 3 + [LOW] * 5, "not at this scale", "both are stable"),
    ],
)
def test_the_verdict_is_of_pairs_where_one_of_the_two_is_unstable(
    adam: list[float | None], adopt: list[float | None], verdict: str, says: str, tmp_path: Path
) -> None:
    rows = made_up({("AdamW", 0.3): adam, ("ADOPT", 0.3): adopt})
    (claim,) = instability.claims(rows)
    assert claim.verdict == verdict
    assert says in claim.ours
    if verdict != "not at this scale":
        assert "at learning rate 0.3 " in claim.ours
    instability.plot(rows, tmp_path / "plot.png")


def test_the_lowest_such_learning_rate_counts() -> None:
    rows = made_up({("AdamW", 0.3): [HIGH] * 4 + [LOW] * 4, ("AdamW", 1.0): [HIGH] * 8})
    assert instability.unstable(rows) == 0.3
    assert instability.unstable(made_up({("ADOPT", 0.03): [HIGH] * 8, ("AdamW", 1.0): [HIGH] * 8})) == 0.03
    assert "| AdamW | 0 and 0 of 8 | 4 and 4 of 8 | 8 and 8 of 8 |" in instability.table(rows)


def test_that_adopt_diverges_and_adamw_does_not_would_contradict() -> None:
    adam, adopt = dict.fromkeys(range(8), False), dict.fromkeys(range(8), True)
    assert instability.compare(adam, adopt)[0] == "contradicted"
    assert instability.compare({}, {}) == (
        "not at this scale",
        "of 0 pairs only AdamW diverged in 0, only ADOPT in 0",
    )


def test_an_unknown_optimizer() -> None:
    with pytest.raises(InputError, match="optimizer must be one of 'AdamW', 'ADOPT'"):
        instability.one(optimizer="SGD", lr=0.1, seed=0, batch=1)


@pytest.mark.slow
def test_the_command_at_toy_size(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    toy = ["--set", "max_steps=12", "n_embd=8", "block_size=8", "seed=0"]
    arguments = ("--workers", 1, "--folder", tmp_path / "runs", *toy)
    result = call("instability", *arguments, home=shared_home(tmp_path_factory))
    assert result.returncode == 0, result.stderr
    rows = [json.loads(file.read_text()) for file in (tmp_path / "runs" / "instability").glob("*.json")]
    assert len(rows) == len(instability.RATES) * len(instability.OPTIMIZERS)
    # A constant rate from the first step on: at 1 the second loss is far above the first.
    adamw = next(r for r in rows if (r["settings"]["optimizer"], r["settings"]["lr"]) == ("AdamW", 1.0))
    assert max(adamw["result"]["losses"][1:4]) > adamw["result"]["losses"][0] + 1
    assert "| ADOPTW, beta2_warmup=1 | " in result.stdout
    assert (tmp_path / "runs" / "instability.png").read_bytes().startswith(b"\x89PNG")
