"""The statistics and the rule of the protocol, on rows that are made up."""

import math

import pytest

from experiments.defaults import decisions
from experiments.defaults.decisions import Found, Score, adopted, choose, outcome, score, standardised, stays, warmup

SEEDS, RATES = 5, (1e-2, 3e-3, 3e-2)
TASKS = ("a", "b", "c")
NOISE = (0.00, 0.01, -0.01, 0.02, -0.02)  # of the difference, by seed
OF_SEED = (0.5, -0.5, 0.3, -0.3, 0.0)  # what a seed does to all optimizers alike


def row(task, variant, mean, lr=RATES[0], seeds=SEEDS, noise=NOISE):
    losses = [mean + OF_SEED[seed] + noise[seed] for seed in range(seeds)]
    losses = [loss if math.isfinite(loss) else None for loss in losses]
    settings = {"task": task, "variant": variant, "lr": lr, "steps": 10, "seeds": list(range(seeds))}
    return {"name": f"{task}-{variant}-{lr}", "settings": settings, "result": {"losses": losses}}


def gathered(rows, tasks=TASKS):
    return Found(rows, dict.fromkeys(tasks, SEEDS), dict.fromkeys(tasks, RATES))


def adamws(task, better=3.0, worse=3.2):
    flat = (0.0,) * SEEDS
    return [row(task, "adamw-0.95", better, noise=flat), row(task, "adamw-0.999", worse, noise=flat)]


def scored(differences, exponents=(1.0, 0.5)):
    """Scores from {exponent: the mean difference to the better AdamW on each task, None: not run}."""
    rows = [r for task in TASKS for r in adamws(task)]
    for k, means in differences.items():
        rows += [row(t, f"k{k}", 3.0 + m) for t, m in zip(TASKS, means, strict=True) if m is not None]
    found = gathered(rows)
    return [score(found, TASKS, k, f"k{k}", ("adamw-0.95", "adamw-0.999")) for k in exponents]


def test_a_difference_counts_if_the_interval_of_the_pairs_is_on_one_side_of_0():
    # By hand: the pairs' standard deviation is 0.01581, t(0.975, 4) = 2.776, half = 2.776 * 0.01581 / sqrt(5) = 0.0196.
    theirs = dict(enumerate(OF_SEED))
    for mean, wanted in ((-0.0197, "better"), (-0.0195, "level"), (0.0195, "level"), (0.0197, "worse")):
        ours = {seed: theirs[seed] + mean + NOISE[seed] for seed in range(SEEDS)}
        assert outcome(ours, theirs, SEEDS) == wanted


def test_nothing_is_claimed_before_all_seeds_are_there():
    theirs = dict.fromkeys(range(SEEDS), 3.0)
    assert outcome(dict.fromkeys(range(SEEDS - 1), 1.0), theirs, SEEDS) == "not run yet"
    assert outcome(theirs, {}, SEEDS) == "not run yet"


def test_a_run_that_diverges_loses_to_one_that_does_not():
    fine, one = dict.fromkeys(range(SEEDS), 3.0), {**dict.fromkeys(range(SEEDS), 1.0), 2: math.inf}
    assert outcome(one, fine, SEEDS) == "worse"
    assert outcome(fine, one, SEEDS) == "better"
    assert outcome(one, one, SEEDS) == "level"
    assert standardised(one, fine) == math.inf
    assert standardised(fine, one) == -math.inf


def test_a_standardised_difference_is_the_mean_over_the_deviation():
    theirs = dict(enumerate(OF_SEED))
    ours = {seed: theirs[seed] + 0.1 + NOISE[seed] for seed in range(SEEDS)}
    assert standardised(ours, theirs) == pytest.approx(0.1 / math.sqrt(0.001 / 4))
    assert standardised(theirs, theirs) == 0
    assert standardised(dict.fromkeys(range(3), 1.0), dict.fromkeys(range(3), 2.0)) == -math.inf


def test_a_win_is_against_both_adamws_and_a_loss_against_one():
    rows = [*adamws("a", 3.0, 3.2), *adamws("b", 3.0, 3.2), *adamws("c", 3.2, 3.0)]
    rows += [row("a", "k", 2.9), row("b", "k", 3.0), row("c", "k", 3.1)]
    one = score(gathered(rows), TASKS, 1.0, "k", ("adamw-0.95", "adamw-0.999"))
    assert (one.wins, one.level, one.losses, one.missing) == (("a",), ("b",), ("c",), ())
    assert one.sum == pytest.approx((-0.1 + 0.0 + 0.1) / math.sqrt(0.001 / 4))


def test_an_exponent_that_loses_a_task_is_rejected_though_it_wins_all_others():
    scores = scored({1.0: (-0.1, -0.1, 0.0), 0.5: (-0.3, -0.3, 0.1)})
    assert [one.admissible for one in scores] == [True, False]
    assert choose(scores) == 1.0


def test_the_exponent_with_the_most_wins_is_chosen_then_the_lower_sum_then_the_larger():
    assert choose(scored({1.0: (-0.3, -0.3, 0.0), 0.5: (-0.1, -0.1, -0.1)})) == 0.5
    assert choose(scored({1.0: (-0.1, -0.1, 0.0), 0.5: (-0.2, -0.1, 0.0)})) == 0.5
    assert choose(scored({1.0: (-0.1, -0.1, 0.0), 0.5: (-0.1, -0.1, 0.0)})) == 1.0


def test_more_than_half_of_all_tasks_must_be_won_those_not_run_included():
    assert not scored({1.0: (-0.1, 0.0, 0.0)}, (1.0,))[0].admissible
    assert not scored({1.0: (-0.1, None, None)}, (1.0,))[0].admissible
    assert scored({1.0: (-0.1, -0.1, None)}, (1.0,))[0].missing == ("c",)
    half = Score(1.0, wins=("a", "b"), losses=(), level=("c", "d"), missing=(), sum=-1.0)
    assert not half.admissible
    assert half._replace(level=("c",)).admissible


def test_an_exponent_is_open_while_what_is_not_run_can_make_it_admissible():
    one = Score(1.0, wins=("a",), losses=(), level=("b", "c"), missing=("d", "e"), sum=0.0)
    assert one.open
    assert not one._replace(losses=("b",), level=("c",)).open
    assert not one._replace(missing=("d",)).open  # two of four are not more than half
    assert not one._replace(wins=("a", "b", "d", "e"), missing=()).open


def test_without_an_admissible_exponent_it_stays_1():
    assert choose(scored({1.0: (0.1, 0.1, 0.1), 0.5: (0.0, 0.0, 0.0)})) == 1.0


def test_each_seed_has_the_rate_that_is_best_for_the_others():
    flat, low, high = (0.0,) * SEEDS, sorted(RATES)[0], sorted(RATES)[-1]
    rows = [row("a", "k", 3.0, lr, noise=flat) for lr in (low, RATES[0])]
    # Its mean is the lowest by far, because of seed 4 only: the others choose it, seed 4 itself does not.
    rows.append(row("a", "k", 3.1, high, noise=(0.0, 0.0, 0.0, 0.0, -9.0)))
    found = gathered(rows)
    assert found.best_rate("a", "k") == (high, True)
    own = found.own_best("a", "k")
    assert own[4] == pytest.approx(3.0)
    assert own[0] == pytest.approx(3.1 + OF_SEED[0])


def test_the_best_rate_in_the_middle_is_not_at_the_edge_and_needs_all_rates():
    rows = [row("a", "k", 3.0 + abs(lr - RATES[0]), lr) for lr in RATES]
    assert gathered(rows).best_rate("a", "k") == (RATES[0], False)
    assert gathered(rows[:2]).best_rate("a", "k") is None
    assert gathered(rows[:2]).own_best("a", "k") == {}
    assert gathered([*rows[:2], row("a", "k", 3.0, RATES[2], seeds=2)]).own_best("a", "k") == {}


def test_the_warm_up_stays_unless_it_is_worse_on_one_task_on_one_basis():
    def comparisons(there, at_best=-0.1):
        rows = [row(t, "with", 3.0 + there, RATES[0]) for t in TASKS] + [row(t, "paper", 3.0) for t in TASKS]
        for task in TASKS:
            for lr in RATES[1:]:
                worse = at_best if task == "c" else -0.1
                rows += [row(task, "with", 2.5 + worse, lr), row(task, "paper", 2.5, lr, noise=(0.0,) * SEEDS)]
        return warmup(gathered(rows), TASKS, "with", "paper")

    assert stays(comparisons(-0.1)) is True
    assert stays(comparisons(-0.1, at_best=0.0)) is True
    assert stays(comparisons(-0.1, at_best=0.1)) is False
    assert [one.basis for one in comparisons(-0.1, 0.1) if one.outcome == "worse"] == ["each at its best"]


def test_what_is_tried_once_is_adopted_only_if_it_is_better_on_every_task():
    assert adopted(["better", "better"]) is True
    assert adopted(["better", "not run yet"]) is None
    assert adopted(["level", "not run yet"]) is False
    assert adopted(["better", "worse"]) is False


def test_the_warm_up_is_undecided_while_something_is_not_run_but_falls_at_once():
    rows = [row(t, "paper", 3.0, noise=(0.0,) * SEEDS) for t in TASKS] + [row("a", "with", 2.9)]
    assert stays(warmup(gathered(rows), TASKS, "with", "paper")) is None
    assert stays(warmup(gathered([*rows, row("b", "with", 3.1)]), TASKS, "with", "paper")) is False


def test_a_comparison_that_goes_against_the_warm_up_is_run_again_with_other_seeds():
    def comparisons(again):
        rows = [row(t, "paper", 3.0, noise=(0.0,) * SEEDS) for t in TASKS] + [row("a", "with", 3.1)]
        for variant, mean in (("paper", 3.0), ("with", again)):
            other = row("a", variant, mean, noise=NOISE if variant == "with" else (0.0,) * SEEDS)
            other["settings"]["seeds"] = [decisions.AGAIN + seed for seed in range(SEEDS)]
            rows.append(other)
        return warmup(gathered(rows), TASKS, "with", "paper")

    confirmed, chance = comparisons(3.1)[0], comparisons(3.0)[0]
    assert (confirmed.outcome, chance.outcome) == ("worse", "level")
    assert chance.difference.above
    assert chance.again.mean == pytest.approx(0.0)
    assert comparisons(2.9)[0].outcome == "level"  # it went against it once, so it is no win


@pytest.mark.parametrize(("other_rate", "expected"), [(3.5, "level"), (3.0, "worse")])
def test_each_at_its_best_is_the_same_comparison_where_both_are_best_at_adamws_rate(other_rate, expected):
    rows = []
    for variant, mean in (("paper", 3.0), ("with", 3.1)):
        noise = NOISE if variant == "with" else (0.0,) * SEEDS
        rows += [row("a", variant, mean, noise=noise)]
        rows += [row("a", variant, other_rate + 0.05 * (variant == "with"), lr=lr, noise=noise) for lr in RATES[1:]]
        other = row("a", variant, 3.0, noise=noise)
        other["settings"]["seeds"] = [decisions.AGAIN + seed for seed in range(SEEDS)]
        rows.append(other)
    at_adamws, at_best = warmup(gathered(rows), TASKS[:1], "with", "paper")
    assert (at_adamws.outcome, at_best.outcome) == ("level", expected)


def test_the_pilots_seeds_are_not_among_those_compared():
    pilot = row("a", "adamw-0.95", 1.0)
    pilot["settings"]["seeds"] = [100, 101, 102, 103, 104]
    found = gathered([pilot, row("a", "adamw-0.95", 3.0)])
    assert found.at("a", "adamw-0.95")[1] == pytest.approx(2.51)
    assert found.pilot("a") == {RATES[0]: pytest.approx(1.0)}


def test_the_rule_that_is_printed_names_what_the_code_does():
    for words in ("95 %", "more than half", "loses none", "not corrected", "not run yet", "k stays 1"):
        assert words in decisions.RULE
