"""The verdict says no more than its interval allows: its sentences, and how often it is wrong where nothing differs."""

import random

import pytest

from adopt_hf.commands.compare import verdict
from tests.commands.compare.test_results import grid

NAMES = ("adopt", "adamw_torch")


def said(ours: list[list[float | None]], theirs: list[list[float | None]], lrs: tuple[float, ...] = (1e-3,)) -> str:
    found = grid(dict(zip(NAMES, (ours, theirs), strict=True)), lrs)
    return str(found["verdicts"][0]["sentence"])


def test_sentences() -> None:
    """One for each kind of interval: below 0, above 0, around 0, none, and a run that diverged."""
    assert said([[2.0, 3.0, 4.0]], [[2.5, 3.4, 4.6]]) == (
        "adopt ends with a lower held-out loss than adamw_torch at learning rate 1e-3: by 0.500, and by 0.252 to 0.748 "
        "within the interval."
    )
    assert "adopt ends with a higher held-out loss than" in said([[2.5, 3.4, 4.6]], [[2.0, 3.0, 4.0]])
    assert said([[2.0, 3.0]], [[2.1, 2.9]]) == (
        "These runs do not tell adopt and adamw_torch apart at learning rate 1e-3: the difference in held-out loss "
        "lies between -1.271 and +1.271."
    )
    assert said([[2.0]], [[2.5]]) == (
        "One pair of runs gives no interval: adopt ended 0.500 below adamw_torch in held-out loss at learning rate "
        "1e-3, which another seed may reverse."
    )
    assert said([[2.0, None]], [[2.5, 2.6]]) == (
        "adopt diverged at every learning rate that was tried, so adopt cannot be compared."
    )
    assert said([[2.0]], [[None]]).startswith("adamw_torch diverged at every learning rate that was tried, so adopt")
    assert ", at learning rates 1e-3 and 1e-2:" in said([[2.0, 3.1], [4, 4]], [[9, 9], [2.1, 3.1]], (1e-3, 1e-2))


def test_equal_runs_are_not_told_apart() -> None:
    assert said([[2.0, 3.0]], [[2.0, 3.0]]).startswith("These runs do not tell adopt and adamw_torch apart")


def test_what_belongs_to_it() -> None:
    found = grid({"adopt": [[2.0, 3.0], [4, 4]], "adamw_torch": [[9, 9], [2.1, 3.3]]}, (1e-3, 1e-2))
    text = " ".join(found["verdicts"][0]["interval"] + found["conditions"])
    assert "2 pairs of one seed each, with 98.8 % confidence" in text
    assert "wider than a single one of 95 %, because it covers all 4 comparisons" in text
    assert "That is no evidence that they are equal." in text
    assert "The best learning rate of adopt, 1e-3, is the lowest that was tried" in text
    assert "The best learning rate of adamw_torch, 1e-2, is the highest that was tried" in text
    assert grid({"adopt": [[2.0]]}, (1e-3,))["verdicts"][0]["sentence"] == (
        "Only adopt was run, so there is nothing to compare it with."
    )


@pytest.mark.parametrize("lrs", [(1e-3,), (1e-3, 3e-3, 1e-2)])
def test_where_nothing_differs_it_is_wrong_in_one_of_twenty_at_most(lrs: tuple[float, ...]) -> None:
    """With one interval of 95 % the choice of the best of three learning rates would be wrong more often."""
    rng = random.Random(0)
    trials, wrong = 150, 0
    for _ in range(trials):
        of_seed = [rng.gauss(3, 0.5) for _ in range(4)]
        losses = {name: [[mean + rng.gauss(0, 0.02) for mean in of_seed] for _ in lrs] for name in NAMES}
        wrong += verdict_of(losses, lrs) != "open"
    assert wrong / trials <= 0.1  # 0.05, and three standard errors of so many trials
    assert wrong > 0 or len(lrs) > 1


def verdict_of(losses: dict[str, list[list[float]]], lrs: tuple[float, ...]) -> str:
    found = grid(losses, lrs)  # type: ignore[arg-type]  # a list of numbers without None
    return str(found["verdicts"][0]["kind"])


@pytest.mark.parametrize(
    ("value", "beside", "text"),
    [(3.14159, None, "3.142"), (0.0, None, "0.000"), (0.0123, None, "0.0123"), (-0.00345, None, "-0.0034"),
     (1.0, 0.00345, "1.0000"), (0.25, 7.0, "0.250"), (1234.5, None, "1234.500")],
)  # fmt: skip
def test_numbers_have_two_significant_digits_at_least(value: float, beside: float | None, text: str) -> None:
    assert verdict.number(value, beside) == text
