"""`python -m experiments`: every row of its table can be run, and has the results and the page that it names."""

import importlib
import subprocess
import sys

import pytest

from experiments import __main__ as command
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
