"""`python -m experiments`: every row of its table can be run, and has the results and the page that it names."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import __main__ as command
from experiments.harness.command import parse
from experiments.harness.machine import ROOT
from experiments.table import EXPERIMENTS

OF_AN_EXPERIMENT = ("NAME", "TITLE", "parts", "one", "claims", "table", "plot")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_row_can_be_run_and_its_files_are_there(name: str) -> None:
    row = EXPERIMENTS[name]
    module = importlib.import_module(row.module)
    assert hasattr(module, "main") or all(hasattr(module, attribute) for attribute in OF_AN_EXPERIMENT)
    assert all((ROOT / path).exists() for path in (row.results, row.page))


def test_the_list_has_every_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["list"]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["NAME", *EXPERIMENTS]


def test_a_wrong_name_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["stpe"]) == 2
    said = capsys.readouterr().err
    assert said == "python -m experiments: error: there is no experiment 'stpe': see `python -m experiments list`\n"


@pytest.mark.parametrize("name", ["toy", "step", "low_bits"])
def test_an_experiments_own_options_are_passed_on(name: str) -> None:
    """An experiment of the paper, one with a prog of its own, and one with argparse's."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments", name, "--no_such_option"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == f"python -m experiments {name}: error: unrecognized arguments: --no_such_option"


def test_quick_changes_defaults_and_not_what_is_given(tmp_path: Path) -> None:
    def parsed(*words: str) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=int, default=20_000)
        parser.add_argument("--results", type=Path, default=Path("kept"))
        return vars(parse(parser, words, steps=300, results=tmp_path / "quick" / "results"))

    kept, quick = Path("kept"), tmp_path / "quick" / "results"
    assert (
        parsed()
        == parsed("--full") | {"full": False}
        == {"steps": 20_000, "results": kept, "quick": False, "full": False}
    )
    assert not quick.parent.exists()
    assert parsed("--quick") == {"steps": 300, "results": quick, "quick": True, "full": False}
    assert quick.parent.is_dir()
    assert parsed("--quick", "--steps", "7")["steps"] == 7
    with pytest.raises(SystemExit):
        parsed("--quick", "--full")


OF_ONE_SIZE = ("defaults", "evidence", "frameworks", "gpu_check")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in OF_ONE_SIZE])
def test_a_short_form_is_called_quick(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)  # which the command replaces
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    assert ended.value.code == 0
    assert "[--quick | --full]" in " ".join(capsys.readouterr().out.split())
