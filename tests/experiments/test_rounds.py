"""Rounds interleave, ratios are of the same round, a peer that fails is an error and not a gap; groups fit."""

import pytest

from experiments.step.groups import groups
from experiments.step.rounds import Times, interleave, quartiles, ratio, summary


def times(ms: float) -> Times:
    return Times(ms=ms, wall_ms=ms, cpu_ms=2 * ms, host_ms=None)


def test_everybody_steps_once_a_round_after_everybody_else_in_turn() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: (order.append(name), times(1))[1] for name in "abc"}
    rounds, errors = interleave(steps, rounds=98, warmup=2)
    assert [set(r) for r in rounds] == [set("abc")] * 98
    assert errors == {}
    in_rounds = ["".join(order[i : i + 3]) for i in range(0, 300, 3)]
    assert {"".join(sorted(names)) for names in in_rounds} == {"abc"}
    assert len(set(in_rounds)) == 6  # all orders there are


def test_warm_up_rounds_do_not_count() -> None:
    planted = iter([100, 100, 1, 2, 3])
    rounds, _ = interleave({"a": lambda: times(next(planted))}, rounds=3, warmup=2)
    assert [r["a"].ms for r in rounds] == [1, 2, 3]


def test_a_peer_that_fails_late_is_in_no_round_and_the_others_go_on() -> None:
    left = iter([1, 2])

    def failing() -> Times:
        return times(next(left))

    rounds, errors = interleave({"a": lambda: times(1), "b": failing}, rounds=3, warmup=0)
    assert errors == {"b": "StopIteration:"}
    assert [set(r) for r in rounds] == [{"a"}] * 3


def test_a_ratio_is_the_median_of_the_ratios_of_rounds() -> None:
    """The machine was ten times slower in the second round; the medians' own ratio would be 20/4 = 5."""
    planted = [{"a": times(8), "b": times(4)}, {"a": times(20), "b": times(40)}, {"a": times(30), "b": times(3)}]
    found = ratio(planted, "a", "b")
    assert found is not None
    assert found["median"] == 2
    assert (found["q1"], found["q3"]) == (1.25, 6)


def test_rounds_without_one_of_the_two_do_not_count() -> None:
    planted = [{"a": times(1)}, {"a": times(6), "b": times(2)}, {"b": times(1)}]
    assert ratio(planted, "a", "b") == {"q1": 3, "median": 3, "q3": 3}
    assert ratio(planted, "a", "c") is None
    assert quartiles([]) is None


def test_summary_of_planted_rounds() -> None:
    planted = [{"ours": times(2), "base": times(4), "floor": times(1)}] * 3
    row = summary(planted, "ours", "base", "ours", "floor")
    assert [row[key]["median"] for key in ("ms", "cpu_ms", "to_adamw", "to_ours", "to_floor")] == [2, 4, 0.5, 1, 2]
    assert row["host_ms"] is None


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (100, [["base", "ours", "a", "b", "c"]]),
        (85, [["base", "ours", "a", "b"], ["base", "ours", "c"]]),
        (5, [["base", "ours", "a"], ["base", "ours", "b"], ["base", "ours", "c"]]),
    ],
)
def test_groups_fit_and_have_the_anchors(available: int, expected: list[list[str]]) -> None:
    names = ["ours", "a", "base", "b", "c"]
    assert groups(names, ["base", "ours"], each=10, shared=15, available=available) == expected


def test_anchors_alone_are_a_group() -> None:
    assert groups(["base", "ours"], ["base", "ours"], each=10, shared=0, available=1) == [["base", "ours"]]
