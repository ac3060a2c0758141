"""The shared parser: a config's values are checked as those of the command line are, which win."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from examples.shared import cli
from examples.shared.cli import Parser
from examples.shared.errors import InputError

ROOT = Path(__file__).parents[2]


@dataclass
class Own:
    """Fields of each kind."""

    size: int = 1
    names: list[str] | None = None
    numbers: dict[str, Any] | str | None = None
    many: list[str] = field(default_factory=lambda: ["a"])

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size must be at least 1, got {self.size}")


def write(folder: Path, text: str) -> Path:
    config = folder / "known.yaml"
    config.write_text(text)
    return config


def parse(config: Path, *argv: str, **options: Any) -> tuple[Own, TrainingArguments, dict[str, Any]]:
    parser = Parser((Own, TrainingArguments), "", config, **options)
    own, args = parser.parse(["--use_cpu", "--report_to", "none", *argv])
    return own, args, parser.overrides


def test_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "output_dir", None)
    text = "size: 3\nnames: one\nnumbers: {rate: 1e-3}\nlearning_rate: 1e-2\nbf16: no\nmany: [b, 1]\n"
    own, args, overrides = parse(write(tmp_path, text), "--learning_rate", "0.5")
    assert own == Own(3, ["one"], '{"rate": "1e-3"}', ["b", "1"])
    assert (args.learning_rate, args.bf16, args.optim) == (0.5, False, "adopt")
    assert args.output_dir == "runs/known"
    assert cli.output_dir == Path("runs/known")
    # One that is written and equals the default is no override.
    written = {"size": 3, "names": ["one"], "numbers": '{"rate": "1e-3"}', "many": ["b", "1"]}
    assert overrides == {**written, "learning_rate": 0.5, "use_cpu": True}


def test_a_bare_config_and_a_script_without_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "output_dir", None)
    other = tmp_path / "other.yaml"
    other.write_text("size: 7\n")
    parser = Parser((Own, TrainingArguments), "", write(tmp_path, "size: 2\n"), runs=None)
    own, _ = parser.parse([str(other), "--use_cpu", "--report_to", "none"])
    assert own.size == 7
    assert cli.output_dir is None
    _, args, _ = parse(other, runs="runs/llama-{}")
    assert args.output_dir == "runs/llama-other"


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("size: many\n", (), "config file {}: argument --size: invalid int value: 'many'"),
        ("size: 1.5\n", (), "config file {}: argument --size: invalid int value: '1.5'"),
        ("size: null\n", (), "config file {}: size must have a value, got null"),
        ("many:\n", (), "config file {}: many must have a value, got null"),
        ("size: [1, 2]\n", (), "config file {}: size takes one value, got the list [1, 2]"),
        ("size: {a: 1}\n", (), "config file {}: size takes one value, got the mapping {'a': 1}"),
        ("names: {a: 1}\n", (), "config file {}: names takes one value, got the mapping"),
        ("siz: 1\n", (), "config file {}: unknown key 'siz'; did you mean size?"),
        ("zzzz: 1\n", (), "config file {}: unknown key 'zzzz'; --help lists what is allowed"),
        ("3: 1\n", (), "config file {}: unknown key 3; --help lists what is allowed"),
        ("- size\n", (), "config file {} must hold 'name: value' lines, not a list"),
        ("size: {\n", (), "config file {} is not valid YAML: "),
        ("size: 1\n", ("--siz", "1"), "unknown argument --siz; did you mean size?"),
        ("size: 1\n", ("--size", "0"), "size must be at least 1, got 0"),
        ("size: 1\n", ("--config",), "argument --config: expected one argument"),
        (
            "size: 1\n",
            ("--config", "no.yaml"),
            "config file no.yaml: No such file or directory; {folder} has known.yaml",
        ),
    ],
)
def test_a_mistake_is_one_line(
    text: str, argv: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, text)
    with pytest.raises(SystemExit) as exit_:
        parse(config, *argv)
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    expected = message.replace("{}", str(config)).replace("{folder}", str(tmp_path))
    assert line.split(": error: ", 1)[1].startswith(expected)


def test_what_a_check_raises_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def check(own: Own, args: TrainingArguments) -> None:
        raise RuntimeError(f"no\n  {own.size} on {args.device}")

    with pytest.raises(SystemExit):
        Parser((Own, TrainingArguments), "", write(tmp_path, "size: 2\n")).parse(["--use_cpu"], check)
    assert capsys.readouterr().err.endswith(": error: no 2 on cpu\n")


def test_the_error_costs_no_import() -> None:
    """The harness of the experiments raises it, in workers that may not need torch."""
    code = "import sys, experiments.harness.runs as runs; print(runs.InputError.__module__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "examples.shared.errors False\n"


def test_errors_of_a_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["folder/train.py"])

    def main() -> None:
        raise InputError("size must be\n at least 1")

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "train.py: error: size must be at least 1\n"
