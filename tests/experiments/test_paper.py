"""experiments/paper, what its experiments share: runs that are kept, settings, verdicts, the page."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from experiments.harness import command, paired
from experiments.harness import runs as parts
from experiments.harness.claims import Claim
from experiments.harness.runs import InputError, Part
from experiments.paper import evidence
from experiments.table import PAPER, load
from tests.support import processes

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- results: python -m experiments evidence -->", "<!-- end of results -->"
TOY = ("--set", "steps=60", "seeds=4", "decay=0.2")


def start(module: str, *arguments: object, **more: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", module, *map(str, arguments)],
        cwd=ROOT,
        env=processes.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def call(module: str, *arguments: object) -> processes.Finished:
    return processes.run("-m", "experiments", module, *arguments, cwd=ROOT)


def stamps(folder: Path) -> dict[str, tuple[int, str]]:
    return {str(f.relative_to(folder)): (f.stat().st_mtime_ns, f.read_text()) for f in sorted(folder.rglob("*.json"))}


def fake(**values: Any) -> SimpleNamespace:
    """An experiment of two runs."""

    def plot(rows: list[Any], path: Path) -> None:
        Image.new("L", (len(rows), 1)).save(path)

    def say(rows: list[Any]) -> list[Claim]:
        return [Claim("a | b", "figure 9", str(len(rows)), "none", "reproduced")]

    def wanted(quick: bool) -> list[Part]:
        return [Part("fake", f"{x}", {"x": x, "size": 1.5 if quick else 9.0}) for x in (1, 2)]

    default = {
        "NAME": "fake", "TITLE": "A fake", "parts": wanted, "one": lambda x, size: {"y": x * size}, "claims": say,
        "plot": plot, "table": lambda rows: f"| {len(rows)} |",
    }  # fmt: skip
    return SimpleNamespace(**default | values)


def test_a_finished_part_is_not_run_again(tmp_path: Path) -> None:
    module, calls = fake(), []

    def one(x: int, size: float) -> dict[str, Any]:
        calls.append(x)
        if x == 2 and len(calls) == 2:
            raise RuntimeError("killed")
        return {"y": x * size}

    with pytest.raises(RuntimeError, match="killed"):
        parts.run(module.parts(True), one, tmp_path)
    rows = parts.run(module.parts(True), one, tmp_path)
    assert calls == [1, 2, 2]
    assert [row["result"] for row in rows] == [{"y": 1.5}, {"y": 3.0}]
    assert {"date", "processor", "load", "torch", "commit", "seconds"} <= set(rows[0]["conditions"])
    assert parts.run(module.parts(True), one, tmp_path) == rows == parts.read("fake", tmp_path)
    assert calls == [1, 2, 2]
    with pytest.raises(InputError, match=r"1\.json has other settings, .*1\.5"):
        parts.run(module.parts(False), one, tmp_path)
    with pytest.raises(InputError, match="workers must be at least 1, got 0"):
        parts.run(module.parts(True), one, tmp_path, workers=0)


def test_settings_from_the_command_line() -> None:
    wanted = [Part("a", "1", {"steps": 5, "lr": 0.1, "seed": 0}), Part("a", "2", {"steps": 5, "lr": 0.1, "seed": 1})]
    changed = command.with_settings(wanted, ["steps=7", "lr=1"])
    assert [dict(part.settings) for part in changed] == [
        {"steps": 7, "lr": 1.0, "seed": 0},
        {"steps": 7, "lr": 1.0, "seed": 1},
    ]
    assert [part.name for part in command.with_settings(wanted, ["seed=3"])] == ["1"]
    for wrong, message in (
        ("steps", "NAME=VALUE with a name among lr, seed, steps; got 'steps'"),
        ("step=7", "among lr, seed, steps; got 'step=7'"),
        ("steps=many", "--set steps must be a int, as 5 is; got 'many'"),
        ("steps=0.5", "must be a int"),
    ):
        with pytest.raises(InputError, match=message):
            command.with_settings(wanted, [wrong])


def test_intervals_of_a_mean() -> None:
    assert paired.interval([1.0, 2.0, 3.0], ".2f") == "2.00 ± 2.48"  # 4.303 * 1 / sqrt(3)
    assert paired.interval([1.0, float("nan")], ".2f") == "diverged"


def test_the_page_takes_over_what_is_whole(tmp_path: Path) -> None:
    module, page, results, runs = fake(), tmp_path / "page.md", tmp_path / "results", tmp_path / "runs"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    said: list[str] = []
    evidence.write([module], runs, results, page, said.append)
    assert "Not run yet: `python -m experiments fake`." in page.read_text()
    parts.run(module.parts(True)[:1], module.one, runs)
    evidence.write([module], runs, results, page, said.append)
    assert not results.exists()
    assert "1 runs in" in said[-2]
    parts.run(module.parts(True), module.one, runs)
    evidence.write([module], runs, results, page, said.append)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| a \\| b | figure 9 | 2 | none | **reproduced** |" in text
    assert "![A fake](page/fake.png)" in text
    with Image.open(tmp_path / "page" / "fake.png") as picture:
        assert picture.size == (2, 1)
        assert picture.text[evidence.STAMP] == evidence.digest(module, parts.kept(module.NAME, results))
    evidence.write([module], tmp_path / "empty", results, page, said.append)
    assert page.read_text() == text
    page.write_text("no markers")
    with pytest.raises(InputError, match="lacks the markers <!-- results: COMMAND -->"):
        evidence.write([module], runs, results, page, said.append)


def test_later_runs_are_added_and_kept_ones_stay(tmp_path: Path) -> None:
    """More seeds come in one by one; a run that is there is not replaced by a luckier one."""
    results, runs, again = tmp_path / "results", tmp_path / "runs", tmp_path / "again"
    module = fake()
    parts.run(module.parts(True), module.one, runs)
    assert "2 runs taken over" in evidence.take_over(module, runs, results)
    more = fake(
        parts=lambda quick: [Part("fake", f"{x}", {"x": x, "size": 1.5 if quick else 9.0}) for x in (0, 1, 2, 3)]
    )
    parts.run(more.parts(True)[1:], lambda x, size: {"y": -1.0}, again)
    assert "1 runs taken over" in evidence.take_over(more, again, results)
    rows = parts.kept(more.NAME, results)
    assert [row["result"]["y"] for row in rows] == [1.5, 3.0, -1.0]
    assert evidence.missing(more, rows) == 1
    assert "1 more runs are not run yet: `python -m experiments fake --missing`" in evidence.text([(more, rows)], "")
    assert "none of them new" in evidence.take_over(more, again, results)
    parts.run(more.parts(False), more.one, tmp_path / "full")
    assert "4 runs taken over" in evidence.take_over(more, tmp_path / "full", results)
    assert "at the full size: fake" in evidence.size([(more, parts.kept(more.NAME, results))])


def test_missing_are_the_parts_that_are_not_kept(tmp_path: Path) -> None:
    module, results = fake(), tmp_path / "results"
    wanted = module.parts(True)
    assert command.missing(wanted, results) == wanted
    parts.run(wanted, module.one, tmp_path / "runs")
    evidence.take_over(module, tmp_path / "runs", results)
    left = command.missing([*wanted, *module.parts(False)], results)
    assert [part.settings for part in left] == [part.settings for part in module.parts(False)]


def test_the_page_in_the_docs_is_the_results() -> None:
    found = [(module, parts.kept(module.NAME)) for module in load()]
    assert any(rows for _, rows in found)
    page = evidence.PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == evidence.text(found, "evidence")
    for module, rows in found:
        if rows:
            with Image.open(evidence.PAGE.with_suffix("") / f"{module.NAME}.png") as picture:
                assert picture.text[evidence.STAMP] == evidence.digest(module, rows), f"{module.NAME}.png is stale"
    assert f"{BEGIN}\n\n{evidence.RULES}\n\nRun at the default size: toy" in page


@pytest.mark.parametrize("name", PAPER)
def test_every_experiment_offers_what_is_asked_of_it(name: str) -> None:
    (module,) = load([name])
    assert name == module.NAME
    assert name in (ROOT / "experiments" / "paper" / "README.md").read_text()
    for quick in (True, False):
        wanted = module.parts(quick)
        assert wanted
        assert {part.experiment for part in wanted} == {name}
        assert len({part.name for part in wanted}) == len(wanted)
        for part in wanted:
            assert json.loads(json.dumps(part.settings)) == dict(part.settings)


@pytest.mark.slow
def test_all_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n\n{END}")
    arguments = ["--quick", "--experiments", "ablation", "--folder", tmp_path / "runs", "--workers", "2", *TOY]
    arguments += ["--results", tmp_path / "results", "--page", page]
    process = start("paper", *arguments, start_new_session=True)
    try:
        deadline = time.monotonic() + 200
        while not stamps(tmp_path / "runs") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it and its workers
        process.communicate()
    before = stamps(tmp_path / "runs")
    assert before
    done = call("paper", *arguments)
    assert done.returncode == 0, done.stderr
    after = stamps(tmp_path / "runs")
    assert len(after) == 20
    assert {name: after[name] for name in before} == before
    assert "20 runs in" in done.stdout  # of other settings than the default: not taken over
    assert not (tmp_path / "results").exists()
    assert "Not run yet: `python -m experiments ablation`." in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiments", "toys"], "there is no experiment 'toys'; choose from toy, long_toy, ablation"),
        (["--set", "step=3"], "--set takes NAME=VALUE with a name among"),
        (["--experiments", "toy", "--set", "steps=3"], "needs steps >= 10, seeds >= 2"),
        (["--experiments", "toy", "--workers", "0"], "workers must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from experiments.paper import all as everything

    monkeypatch.setattr(sys, "argv", ["all", "--folder", str(tmp_path), "--workers", "1", *arguments])
    with pytest.raises(SystemExit) as exit_:
        everything.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"all: error: {message}")
