"""The plan: options that are read or refused with one sentence, the order of runs, and what is another comparison."""

import sys
from pathlib import Path

import pytest

from adopt_hf.commands.compare import plan as plans
from adopt_hf.commands.compare.plan import InputError, Run, why_another
from tests.support.comparisons import PLAN

KNOWN = ("adopt", "adamw_torch", "adamw_torch_fused", "sgd")


@pytest.mark.parametrize(
    ("lr", "text"),
    [
        (3e-4, "3e-4"),
        (1e-3, "1e-3"),
        (0.1, "1e-1"),
        (1.0, "1e0"),
        (3.2e-5, "3.2e-5"),
        (2.5e-4, "2.5e-4"),
        (12, "1.2e1"),
    ],
)
def test_learning_rates_are_written_as_people_write_them(lr: float, text: str) -> None:
    assert plans.lr_text(lr) == text
    assert float(text) == lr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "adopt,adamw",
            r"'adamw', which is no optimizer of transformers: did you mean adamw_torch or adamw_torch_fused",
        ),
        ("adopt,,sgd", "'', which is no optimizer of transformers: write any of adopt, adamw_torch"),
        ("sgd,sgd", "'sgd' twice"),
    ],
)
def test_names_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plans.parse_optims(text, KNOWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3e-4,x", "'x', which is no number"),
        ("", "'', which is no number"),
        ("0", "'0': a learning rate must be finite and above 0"),
        ("-1e-3", "'-1e-3': a learning rate must be"),
        ("nan", "'nan': a learning rate must be"),
        ("inf", "'inf': a learning rate must be"),
        ("1e-3,0.001", "'0.001' twice"),
    ],
)
def test_learning_rates_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plans.parse_lrs(text)


@pytest.mark.parametrize("text", ["0", "-1", "three", "1.5", ""])
def test_counts_that_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"--seeds is {text!r}: write a whole number above 0"):
        plans.parse_count(text, "--seeds")


def test_what_is_read() -> None:
    assert plans.parse_optims("adopt, sgd", KNOWN) == ("adopt", "sgd")
    assert plans.parse_lrs("1e-3,3e-4") == (3e-4, 1e-3)
    assert plans.parse_count("12", "--jobs") == 12


def test_a_sweep_is_five_learning_rates_half_a_decade_apart() -> None:
    assert plans.swept([1e-3]) == (1e-4, 3.2e-4, 1e-3, 3.2e-3, 1e-2)
    assert plans.swept([2.5e-4])[2] == 2.5e-4
    with pytest.raises(InputError, match="picks five learning rates around one, and --lrs has 2"):
        plans.swept([1e-3, 1e-2])


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        (["train.py", "--learning_rate", "2e-4"], "2e-4"),
        (["train.py", "--learning_rate=2e-4"], "2e-4"),
        (["train.py", "--learning_rate", "1", "--learning_rate", "2e-4"], "2e-4"),
        (["train.py", "--lr", "3"], None),
        (["train.py", "--learning_rate"], None),
    ],
)
def test_the_learning_rate_of_the_command(words: list[str], lr: str | None) -> None:
    assert plans.given_lr(words) == lr


def test_pairs_of_a_seed_run_one_after_the_other() -> None:
    runs = PLAN.runs()
    assert len(set(runs)) == len({run.name for run in runs}) == 2 * 3 * 3
    assert [(run.seed, run.optim) for run in runs[:2]] == [(0, "adopt"), (0, "adamw_torch_fused")]
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_the_words_of_a_run() -> None:
    run = Run("adopt", 3e-4, 2)
    assert run.arguments(Path("/x/output")) == [
        *("--optim", "adopt", "--learning_rate", "0.0003", "--seed", "2", "--output_dir", "/x/output")
    ]
    assert run.name == "adopt_lr3e-4_seed2"


@pytest.mark.parametrize(
    ("optims", "reference"),
    [
        (("adopt", "adamw_torch", "adamw_torch_fused"), "adamw_torch"),
        (("adopt", "sgd"), "sgd"),
        (("adamw_torch", "adopt"), "adamw_torch"),
    ],
)
def test_the_others_are_compared_with_adamw(optims: tuple[str, ...], reference: str) -> None:
    assert PLAN._replace(optims=optims).reference == reference


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"command": ("other.py",)}, "command is 'train.py --max_steps 400' there and 'other.py' here"),
        ({"optims": ("adopt",)}, "optims is "),
        ({"lrs": (1e-3,)}, "lrs is '3e-4 1e-3 3e-3' there and '1e-3' here"),
        ({"seeds": 2}, "seeds is 3 there and 2 here"),
        ({"is_sweep": True}, "sweep is False there and True here"),
        ({"seeds": 5}, None),
        ({}, None),
    ],
)
def test_what_is_another_comparison(changes: dict[str, object], reason: str | None) -> None:
    found = why_another(PLAN.identity(), PLAN._replace(**changes).identity())
    assert found is None if reason is None else (found or "").startswith(reason)


def test_a_script_that_has_been_changed_is_another_comparison(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("a = 1\n")
    plan = PLAN._replace(command=("python", str(script)))
    before = plan.identity()
    assert why_another(before, plan.identity()) is None
    script.write_text("a = 2\n")
    assert why_another(before, plan.identity()) == f"{script} has been changed since"


def test_programs(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    assert plans.program([str(script), "-x"]) == [sys.executable, str(script), "-x"]
    assert plans.program(["-m", "module"]) == [sys.executable, "-m", "module"]
    found, *rest = plans.program(["sh", "-c", "true"])
    assert found.endswith("/sh")
    assert rest == ["-c", "true"]
    for words, message in (
        (["no-such-command"], "'no-such-command' is neither a command on the PATH nor a script"),
        ([str(tmp_path / "none.py")], "no such script"),
        (["-m"], "-m needs the name of a module"),
    ):
        with pytest.raises(InputError, match=message):
            plans.program(words)
