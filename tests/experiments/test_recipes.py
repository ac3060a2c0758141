"""experiments.recipes: what is read of a finished run, which rows are kept, and how they are shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import recipes
from experiments.harness import machine as conditions


def row(optimizer: str, loss: float, date: str = "2026-01-02", **more: Any) -> dict[str, Any]:
    config = "stdlib_adamw" if optimizer == "AdamW" else "stdlib"
    found = {"date": date, "processor": "a CPU", "cores": 2, "load": 0.5, "python": "3", "commit": "abc"}
    return {
        "recipe": "gpt2_pretraining", "config": config, "optimizer": optimizer, "options": ["--some", "option=1"],
        "seed": 0, "threads": 1, "steps": 2400, "eval_loss": loss, "loss_before": None,
        "conditions": found | {"versions": {"torch": "1"}},
    } | more  # fmt: skip


def test_a_row_of_each_run_with_its_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("AdamW", 3.1), row("ADOPT", 3.2), row("ADOPTW", 3.05, exponent=0.8), row("ADOPTW", 3.0, "2026-01-01")]
    rows[1]["conditions"]["load"] = 7
    monkeypatch.setattr(recipes, "ROWS", tmp_path / "rows.jsonl")
    recipes.ROWS.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    assert recipes.table("gpt2_pretraining").splitlines()[2:] == [
        "| `stdlib` | ADOPTW | 2,400 | 0 | 1 | **3.000** | 2026-01-01 | abc |",
        "| `stdlib` | ADOPTW (k = 0.8) | 2,400 | 0 | 1 | **3.050** | 2026-01-02 | abc |",
        "| `stdlib` | ADOPT (`--some option=1`) | 2,400 | 0 | 1 | **3.200** | 2026-01-02 | abc |",
        "| `stdlib_adamw` | AdamW | 2,400 | 0 | 1 | **3.100** | 2026-01-02 | abc |",
        "",
        "Measured on 2026-01-01, 2026-01-02 on a CPU, 2 cores, load of the machine before the start 0.5 to 7; "
        "Python 3, torch 1; commit abc.",
    ]


def test_scores_stand_beside_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"loss_before": 5.88, "score_before": 0.267, "score": 0.446, "score_error": 0.02}
    rows = [row("ADOPTW", 3.2, recipe="llama_instruct", **scores)]
    monkeypatch.setattr(recipes, "ROWS", tmp_path / "rows.jsonl")
    recipes.ROWS.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    assert "| 5.880, **3.200** | 26.7%, **44.6%** ± 2.0 |" in recipes.table("llama_instruct")


def test_what_is_read_of_a_finished_run(tmp_path: Path) -> None:
    history = [{"step": 0, "eval_loss": 6.0}, {"step": 5, "loss": 4.0}, {"step": 9, "eval_loss": 3.0}]
    state = {"global_step": 9, "log_history": history}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    assert recipes.read(tmp_path) == {"steps": 9, "eval_loss": 3.0, "loss_before": 6.0}
    scores = {
        when: {"all": {"accuracy": accuracy, "error": 0.01}} for when, accuracy in (("before", 0.2), ("after", 0.4))
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(scores), encoding="utf-8")
    found = recipes.read(tmp_path)
    assert (found["score_before"], found["score"], found["score_error"]) == (0.2, 0.4, 0.01)


def test_a_run_that_does_not_exist_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        recipes.main(["demo, SGD"])
    assert ended.value.code == 2
    assert "there is no run 'demo, SGD': name some of demo, ADOPTW; demo, ADOPT;" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_run_adds_a_row(tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    results.write_text(json.dumps(row("AdamW", 3.1)) + "\n", encoding="utf-8")
    recipes.main(["demo, ADOPTW", "--max_steps", "3", "--results", str(results)])
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [one["optimizer"] for one in rows] == ["AdamW", "ADOPTW"]
    assert rows[1]["steps"] == 3
    assert 5 < rows[1]["eval_loss"] < 8
    assert rows[1]["conditions"].keys() == conditions.now().keys()
