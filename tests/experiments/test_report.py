"""The report says met, NOT met and not measured where they belong, and names a file that it cannot read."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.pages import registry
from experiments.pages import report as command
from experiments.step import report, results, tables
from experiments.step.shapes import SHAPES
from tests.experiments.conftest import measured, same

Result = dict[str, Any]
Rows = Callable[[str], list[list[str]]]


def test_goals_of_a_cpu(cpu_result: Result, rows_of: Rows) -> None:
    header, _, row = rows_of(tables.goals_table("cpu", [cpu_result["cases"]]))
    assert dict(zip(header[1:], row[1:], strict=True)) == {
        "x AdamW fused <= 1.00": "0.99 met",
        "x DeepSpeedCPUAdam <= 1.00": "not measured",
        "x stream <= 1.10": "1.20 **NOT met**",
        "temporaries 0 MiB": "0.0 met",
        "host, CPU time, x AdamW fused <= 0.50": "0.51 **NOT met**",
        "8-bit moments / ours <= 1.30": "not measured",
        "8-bit moments, 1 in 256 unobserved / all observed <= 1.30": "1.12 met",
        "8-bit moments, half unobserved / all observed <= 1.30": "6.70 **NOT met**",
        "torch-adopt, foreach / ours >= 8": "11.0 met",
        "torch-adopt, single-tensor / ours >= 8": "7.0 **NOT met**",
        "timm / ours >= 8": "not measured",
        "pytorch_optimizer / ours >= 8": "not measured",
        "heavyball / ours >= 8": "10.0 met",
    }


def test_goals_of_a_gpu(cuda_result: Result, rows_of: Rows) -> None:
    header, _, large, small = rows_of(tables.goals_table("cuda", [[case] for case in cuda_result["cases"]]))
    assert header[1:5] == [
        "x AdamW fused <= 1.00",
        "% of copy rate >= 90",
        "launches a group <= 3",
        "temporaries 0 MiB",
    ]
    assert large[1:6] == ["0.90 met", "87 **NOT met**", "2 met", "1.0 **NOT met**", "not measured"]
    assert small[1:5] == ["0.70 met", "no goal", "4 **NOT met**", "0.0 met"]


def test_a_goal_is_judged_as_it_is_shown(cpu_result: Result) -> None:
    ours = cpu_result["cases"][0]["rows"]["adopt_hf"]
    for ratio, expected in ((1.0049, "1.00 met"), (1.0051, "1.01 **NOT met**")):
        ours["to_adamw"]["median"] = ratio
        assert f"| {expected} |" in tables.goals_table("cpu", [cpu_result["cases"]])


def test_every_row_is_shown_with_its_reason(cpu_result: Result, rows_of: Rows) -> None:
    shown = {row[0]: row[1:] for row in rows_of(tables.step_table(cpu_result["cases"], "cpu"))}
    assert shown["DeepSpeedCPUAdam"][0] == "not installed"
    assert shown["timm"][0] == "RuntimeError: planted \\| with a bar"
    assert shown["floor: stream kernel"][0] == "41.7"
    assert shown["**adopt_hf**"] == ["50.00", "0.99", "1.00", "1.20", "-", "0.0", "-", "-"]


def test_without_a_compiler_the_floor_is_a_dash_with_the_reason(cpu_result: Result, rows_of: Rows) -> None:
    cpu_result["cases"][0]["stream"] = {"why": "no C compiler is there"}
    floor = rows_of(tables.step_table(cpu_result["cases"], "cpu"))[2]
    assert floor[:2] == ["floor: stream kernel (no C compiler is there)", "-"]


def test_notes_stand_once_and_where_they_belong(cpu_result: Result) -> None:
    (fp32,) = cpu_result["cases"]
    shown = tables.notes([fp32, fp32])
    assert shown.count("- heavyball: Another rule") == 1
    assert "bf16 too" not in shown
    fp32["rows"]["timm"]["notes"] = ["launches not counted: planted"]
    shown = tables.notes([fp32, fp32 | {"dtype": "bf16"}])
    assert "- torch AdamW, fused; torch-adopt, foreach; torch-adopt, single-tensor: With bf16 parameters" in shown
    assert "- timm: launches not counted: planted" in shown


def test_conditions_stand_with_the_numbers(cuda_result: Result) -> None:
    text = report.render([cuda_result])
    for part in ("Planted GPU (80 GiB, CUDA 13.0)", "Planted CPU, 2 cores", "torch 2.13.0", "2026-01-02", "seed 3"):
        assert part in text
    assert "| `python -m experiments step` |" in text
    assert "4000 GB/s" in text


def test_what_nobody_measured_says_so(rows_of: Rows) -> None:
    shown = rows_of(report.render([]).split("### A step: GPU")[1])[2:]
    assert len(shown) == 2 * sum("cuda" in shape.devices for shape in SHAPES.values())
    assert all(set(row[1:]) == {"not measured"} for row in shown)


def test_what_no_result_has_says_so_once(cpu_result: Result, rows_of: Rows) -> None:
    other = cpu_result | {"cases": [cpu_result["cases"][0] | {"shape": "lora-40m"}]}
    report_of_both = report.render([cpu_result, other])
    (missing,) = report_of_both.split("### A step: CPU, not measured yet")[1:]
    shown = rows_of(missing.split("\n\n")[1])[2:]
    assert [row[0].split(":")[0] for row in shown] == [SHAPES[name].title for name in ("flat-124m", "small-2000")]
    assert all(set(row[1:]) == {"not measured"} for row in shown)
    assert report_of_both.count("Goals:") == 1


def write(folder: Path, name: str, result: Result) -> Path:
    path = folder / name
    path.write_text(json.dumps(result), encoding="utf-8")
    return path


def test_every_result_counts_but_toys(tmp_path: Path, cpu_result: Result) -> None:
    write(tmp_path, "b-old.json", cpu_result | {"date": "2026-01-01"})
    write(tmp_path, "a-new.json", cpu_result | {"seed": 4})
    write(tmp_path, "c-toy.json", cpu_result | {"date": "2027-01-01", "scale": 0.001})
    assert [r["file"] for r in results.read_all(tmp_path)] == ["b-old.json", "a-new.json"]


def test_a_later_run_is_one_more(cpu_result: Result, rows_of: Rows) -> None:
    """Its numbers widen the range; a goal that one of them misses is met in some."""
    later = copy.deepcopy(cpu_result) | {"date": "2026-01-03"}
    later["environment"] |= {"commit": "def+", "load": 7.5}
    rows = later["cases"][0]["rows"]
    rows["adopt_hf"] |= {"ms": same(61), "to_adamw": same(1.021)}
    rows["timm"] = measured(500, 10.0, 9.9)
    text = report.render([cpu_result, later])
    assert "| 2026-01-02 | abc | 9 | 0.1 | not set |" in text
    assert "| 2026-01-03 | def+ | 9 | 7.5 | not set |" in text
    assert "| 0.99 to 1.02, met in 1 of 2 | not measured | 1.20 **NOT met** |" in text
    shown = {row[0]: row[1:] for row in rows_of(text)}
    assert shown["**adopt_hf**"][:5] == ["2", "50.00 to 61.00", "0.99 to 1.02", "1.00", "1.20"]
    assert shown["timm"][:4] == ["1", "500.00", "10.00", "9.90"]
    assert shown["DeepSpeedCPUAdam"][:2] == ["0", "not installed"]
    assert text.count("Goals:") == 1


def test_a_run_does_not_take_the_place_of_another(
    tmp_path: Path, cpu_result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    names = []
    for _ in range(3):
        path = results.default_path("step", "cpu", "Planted CPU", "2026-01-02", 1.0)
        results.write(path, cpu_result)
        names.append(path.name)
    assert names == [f"step-cpu-planted-cpu-2026-01-02{number}.json" for number in ("", "-2", "-3")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, r"not a result of schema 1 \(schema: 2\)"),
        ({"benchmark": "other"}, "benchmark must be one of step, train, got 'other'"),
        ({"seed": "0"}, "'seed' is missing or of the wrong type"),
        ({"cases": [{}]}, "case 0: 'device' is missing"),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path,
    cpu_result: Result,
    change: Result,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path, "broken.json", cpu_result | change)
    with pytest.raises(results.ResultError, match=message) as error:
        results.read(path)
    assert str(error.value).startswith(str(path))
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    registry.text_of.cache_clear()
    with pytest.raises(SystemExit) as ended:
        command.main(["--check"])
    assert ended.value.code == 2
    assert str(path) in capsys.readouterr().err


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text('{"schema": 1,', encoding="utf-8")
    with pytest.raises(results.ResultError, match=r"cut.json: cannot be read"):
        results.read_all(tmp_path)


def test_a_row_without_times_is_an_error(tmp_path: Path, cpu_result: Result) -> None:
    del cpu_result["cases"][0]["rows"]["adopt_hf"]["ms"]
    with pytest.raises(results.ResultError, match="case 0, adopt_hf: 'ms' is missing"):
        results.read(write(tmp_path, "row.json", cpu_result))
