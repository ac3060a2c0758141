"""The experiment `convert`: its rule on losses that are made up, and one run at toy size."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments.convert import plot, report, run
from experiments.harness import runs

STEPS = 200
NOISE = (0.01, -0.02, 0.0, 0.02, -0.01)  # of the five seeds, around AdamW's loss


def rows(difference: Any, spread: float = 0.1) -> list[dict[str, Any]]:
    """Return five rows, in which the converted run differs from AdamW by `difference(step, seed)`."""
    found = []
    for seed in range(5):
        adamw = [3.0 + spread * (seed - 2) - 0.001 * step for step in range(STEPS)]
        converted = [loss + difference(step, seed) for step, loss in enumerate(adamw)]
        result = {"adamw": adamw, "converted": converted, "empty": [loss + 1 for loss in adamw]}
        settings = {"seed": seed, "beta2": 0.999, "saved": 500, "ended": 700, "steps": 1000}
        conditions = {"date": "d", "processor": "p", "torch": "t", "transformers": "f", "commit": "c"}
        found.append({"settings": settings, "result": result, "conditions": conditions})
    return found


@pytest.mark.parametrize(
    ("difference", "spread", "verdict"),
    [
        (lambda step, seed: NOISE[seed], 0.1, "goes on"),
        (lambda step, seed: 0.3 + NOISE[seed], 0.1, "jumps"),
        (lambda step, seed: 10 * NOISE[seed], 0.1, "not shown"),  # too wide an interval
        (lambda step, seed: 0.04 + NOISE[seed], 0.1, "not shown"),  # neither within the margin nor above it
        (lambda step, seed: NOISE[seed] + (0.5 if 100 <= step < 120 else 0), 0.1, "not shown"),  # one block outside
        (lambda step, seed: 0.01, 0.001, "not shown"),  # no jump, and outside of AdamW's narrow interval
        (lambda step, seed: -0.3 + NOISE[seed], 0.1, "not shown"),  # better, which is no "goes on"
    ],
)
def test_the_rule(difference: Any, spread: float, verdict: str) -> None:
    assert report.verdict(rows(difference, spread), "converted") == verdict


def test_the_table_shows_both_runs() -> None:
    text = report.table(rows(lambda step, seed: NOISE[seed]))
    lines = text.splitlines()
    assert lines[2].startswith("| 0.999 | ADOPT, converted | ")
    assert "0.000 ± 0.020 (5 pairs) |" in lines[2]
    assert lines[2].endswith("| 10 of 10 | **goes on** |")
    assert lines[3].endswith("| 0 of 10 | **jumps** |")
    assert "AdamW trained for 500 of 1000 steps" in text


def test_the_plot_shows_the_means_and_the_paired_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(plot, "Figure", lambda **options: drawn.append(Figure(**options)) or drawn[-1])
    plot.plot(rows(lambda step, seed: 0.25 + NOISE[seed]), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    above, below = drawn[0].axes
    adamw, converted, empty = (line.get_ydata() for line in above.lines)
    assert len(adamw) == STEPS // report.BLOCK
    assert converted == pytest.approx([loss + 0.25 for loss in adamw])
    assert empty == pytest.approx([loss + 1 for loss in adamw])
    assert above.get_legend_handles_labels()[1][1:] == ["AdamW goes on", *report.ARMS.values()]
    differences = [container.lines[0].get_ydata() for container in below.containers]
    assert differences[0] == pytest.approx([0.25] * len(adamw))
    assert differences[1] == pytest.approx([1.0] * len(adamw))


def test_the_page_shows_the_plot() -> None:
    assert f"]({run.PLOT.name})" in (run.PLOT.parent / "migrate.md").read_text(encoding="utf-8")
    assert run.PLOT.is_file()


def test_each_beta2_has_its_seeds() -> None:
    wanted = run.wanted(run.SEEDS, run.BETA2, (run.SAVED, run.ENDED, run.STEPS))
    assert len({part.name for part in wanted}) == len(wanted) == 10
    assert run.ENDED - run.SAVED == STEPS


@pytest.mark.slow
def test_one_run_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three go on from the same weights; with empty state the first step moves nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["experiments"])
    (part,) = run.wanted([0], [0.95], [4, 8, 10])
    (row,) = runs.run([part], run.one, tmp_path / "runs")
    found = row["result"]
    assert [len(found[arm]) for arm in ("adamw", "converted", "empty")] == [4, 4, 4]
    assert found["adamw"][0] == found["converted"][0] == found["empty"][0]  # before the first step
    assert found["converted"] != found["empty"]
    assert all(4 < loss < 8 for loss in found["converted"])
