"""experiments/compare.py: the sets of docs/compare.md, kept one by one, and shown as they were called."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adopt_hf.commands.compare import results
from experiments import compare
from experiments.harness import runs
from tests.support.comparisons import PLAN, all_finished

CONDITIONS = {"date": "2026-11-29", "processor": "a CPU", "cores": 2, "python": "3.11", "commit": "abc", "versions": {}}


def test_a_set_is_called_as_the_page_shows_it_and_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(words: list[str], check: bool) -> None:
        calls.append(words)
        output = Path(words[words.index("--output") + 1])
        output.mkdir(parents=True, exist_ok=True)
        (output / "results.json").write_text(json.dumps(results.results(PLAN, all_finished(), 1)))

    monkeypatch.setattr(compare, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(compare.machine, "now", lambda *_: CONDITIONS)
    file = tmp_path / "kept.jsonl"
    for sets in ([], ["gpt2"]):
        compare.main([*sets, "--folder", str(tmp_path), "--results", str(file)])
    assert [call[:4] for call in calls] == [[sys.executable, "-m", "adopt_hf", "compare"]] * 3
    assert calls[1][-6:] == ["--evaluate", "false", "--chat_prompt", "", "--save_strategy", "no"]
    rows = runs.lines(file)
    assert [row["name"] for row in rows] == ["llama", "gpt2"]
    text = compare.shown(rows[1])
    found: dict[str, Any] = rows[1]["results"]
    assert f"adopt-hf compare {compare.SETS['gpt2']}" in " ".join(text.replace("\\\n", "").split())
    assert f"**{found['verdicts'][0]['sentence']}**" in text
    assert "| adopt | 1e-3 | 3 of 3 |" in text
    assert "commit abc." in text


def test_a_wrong_name_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["bert"])
    assert "there is no set bert: write any of gpt2, llama" in capsys.readouterr().err
