"""Whole training steps at toy size."""

import json
from pathlib import Path

import pytest

from experiments.harness import fresh
from experiments.step import report, results, temporaries
from experiments.training import run as train


def test_tokens_a_second_and_peaks_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fresh, "call", lambda function, environment, **arguments: function(**arguments))
    monkeypatch.setattr(temporaries, "measurable", lambda: False)
    out = tmp_path / "train.json"
    assert (
        train.main(["--model", "gpt2-toy", "--batch", "2", "--length", "16", "--rounds", "3", "--out", str(out)]) == 0
    )
    (case,) = json.loads(out.read_text(encoding="utf-8"))["cases"]
    for name in ("adamw-fused", "adopt_hf"):
        row = case["rows"][name]
        assert row["why"] == ""
        assert row["tokens_per_s"]["median"] == pytest.approx(32 / (row["ms"]["median"] / 1e3))
    assert case["rows"]["adamw-fused"]["to_adamw"]["median"] == 1
    shown = capsys.readouterr().out
    assert "gpt2-toy, 2 x 16 tokens a step, fp32" in shown
    assert "**adopt_hf**" in report.render([results.read(out)])


@pytest.mark.slow
@pytest.mark.skipif(not temporaries.measurable(), reason="reads the peak of the resident set from /proc")
def test_the_peak_has_at_least_model_gradients_and_states() -> None:
    toy = {"model": "gpt2-toy", "batch": 64, "length": 64, "device": "cpu", "threads": 1, "seed": 0}
    found = fresh.call(train.training.peak, temporaries.ENVIRONMENT, peer="adamw-fused", peers_path=None, **toy)
    logits = 64 * 64 * 128 * 4
    assert found > logits


def test_more_tokens_than_positions_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main(["--length", "2000"])
    assert ended.value.code == 2
    assert "--length must be at most 1024 for gpt2-124m, got 2000" in capsys.readouterr().err
