"""The decision on the defaults, from the rows of protocol.py, by a rule that is older than they: RULE.

Losses of one seed are paired: it gives the initial weights and the order of the data. A difference counts if its 95 %
interval (experiments/harness/paired.py) is on one side of 0.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from experiments.harness.paired import Difference, difference

RULE = """\
- **Differences** are paired by seed: a seed gives the initial weights and the order of the data to all optimizers. The
  intervals are Student's, 95 %, of the mean difference. A run that diverges loses to one that does not.
- **AdamW's rate** of a task is the learning rate with the lowest mean loss of AdamW, beta2 0.95 and 0.999 taken
  together, in a pilot with other seeds than those compared. (Without a pilot: the demo takes its recipe's rate, the
  500 and 2,000 steps of GPT-2 that of the grid in [evidence.md](evidence.md), and the longer long run that of the
  shorter.) It is compared with a rate about three times higher and one about three times lower.
- **An optimizer's own best rate** is chosen for each seed by the mean of the other seeds, so that no loss helps to
  choose its own rate. A best rate at the edge of the grid is marked: the true one may lie beyond.
- **The warm-up stays the default** if on no task it is worse than the paper's rule by more than the interval, neither
  with both at AdamW's rate nor with each at its best.
- **The exponent k** wins a task if it is below both AdamWs at AdamW's rate, by the intervals, and loses it if it is
  above one of them. A k is admissible if it wins more than half of the tasks and loses none. The admissible k with the
  most wins is chosen; of equals the one with the lower sum over the tasks of the mean difference to the better AdamW
  divided by the standard deviation of the differences; of equals the larger k. If no k is admissible, k stays 1.
- **What is tried once** (at AdamW's rate, on the two GPT-2 tasks) is adopted only if it is below ADOPTW with the same k
  by the interval on both.
- The intervals are **not corrected** for their number: of equals, one in twenty falls to one side by chance. A loss by
  chance rejects a k, so this errs towards keeping k = 1 and the paper's rule.
- A comparison counts when all seeds of the task have been run on both sides. What has not is "not run yet" and decides
  nothing.
- **Added on 2026-11-29, after one comparison had gone against the warm-up** (the longer long run, at AdamW's rate, by
  0.007 ± 0.007): a comparison at AdamW's rate that goes against it is run again with as many other seeds, and counts
  only if the interval of the other seeds is above 0, too. Of 22 comparisons of equals one goes against it by
  chance in every second protocol. Where both sides are best at AdamW's rate for every seed, "each at its best"
  compares the same runs again, and has the same outcome."""
AGAIN = 200  # the first of the other seeds

Losses = Mapping[int, float]
Outcome = Literal["better", "worse", "level", "not run yet"]


class Found:
    """The losses of all rows, by task, variant and learning rate.

    Args:
        rows: The rows of the results file.
        seeds: The number of seeds of each task. Larger seeds are the pilot's, and from `AGAIN` on the other seeds.
        rates: The learning rates of each task, AdamW's first.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        seeds: Mapping[str, int],
        rates: Mapping[str, Sequence[float]],
    ) -> None:
        self.seeds, self.rates = seeds, rates
        self._cells: dict[tuple[str, str, float], dict[int, float]] = defaultdict(dict)
        self._pilot: dict[tuple[str, str, float], dict[int, float]] = defaultdict(dict)
        self._again: dict[tuple[str, str, float], dict[int, float]] = defaultdict(dict)
        for row in rows:
            s = row["settings"]
            for seed, loss in zip(s["seeds"], row["result"]["losses"], strict=True):
                cells = self._cells if seed < seeds[s["task"]] else self._pilot if seed < AGAIN else self._again
                cells[s["task"], s["variant"], s["lr"]][seed] = math.inf if loss is None else loss

    def at(self, task: str, variant: str, lr: float | None = None) -> Losses:
        """{seed: loss} at a learning rate, AdamW's by default; empty if it has not been run."""
        return self._cells.get((task, variant, self.rates[task][0] if lr is None else lr), {})

    def again(self, task: str, variant: str) -> Losses:
        """{seed: loss} of the other seeds at AdamW's rate; empty if they have not been run."""
        return self._again.get((task, variant, self.rates[task][0]), {})

    def grid(self, task: str, variant: str) -> dict[float, Losses]:
        """{rate: {seed: loss}} of all rates, lowest first."""
        return {lr: self.at(task, variant, lr) for lr in sorted(self.rates[task])}

    def own_best(self, task: str, variant: str) -> Losses:
        """{seed: loss} at the rate that is best for the other seeds; empty if a rate lacks a seed."""
        grid = self.grid(task, variant)
        if any(len(losses) < self.seeds[task] for losses in grid.values()):
            return {}
        return {
            seed: min(grid.values(), key=lambda losses: statistics.fmean(losses[s] for s in losses if s != seed))[seed]
            for seed in range(self.seeds[task])
        }

    def best_rate(self, task: str, variant: str) -> tuple[float, bool] | None:
        """The rate with the lowest mean, and whether it is at the edge of the grid; None as for `own_best`."""
        grid = self.grid(task, variant)
        if any(len(losses) < self.seeds[task] for losses in grid.values()):
            return None
        chosen = min(grid, key=lambda lr: statistics.fmean(grid[lr].values()))
        return chosen, chosen in (min(grid), max(grid))

    def better_of(self, task: str, variants: Sequence[str]) -> str | None:
        """The variant with the lower mean at AdamW's rate; None before all have all seeds."""
        if any(len(self.at(task, variant)) < self.seeds[task] for variant in variants):
            return None
        return min(variants, key=lambda variant: statistics.fmean(self.at(task, variant).values()))

    def pilot(self, task: str) -> dict[float, float]:
        """{rate: mean loss over variants and seeds} of the pilot."""
        found: dict[float, list[float]] = defaultdict(list)
        for (name, _, lr), losses in self._pilot.items():
            if name == task:
                found[lr] += losses.values()
        return {lr: statistics.fmean(losses) for lr, losses in sorted(found.items())}


def outcome(ours: Losses, theirs: Losses, seeds: int) -> Outcome:
    """Compare two {seed: loss}, which need all `seeds`."""
    if len(ours) < seeds or len(theirs) < seeds:
        return "not run yet"
    diverged = [sum(math.isinf(loss) for loss in losses.values()) for losses in (ours, theirs)]
    if any(diverged):
        return "level" if diverged[0] == diverged[1] else "worse" if diverged[0] > diverged[1] else "better"
    found = difference(ours, theirs)
    return "better" if found.below else "worse" if found.above else "level"


class Score(NamedTuple):
    """The comparison of an exponent with AdamW: tasks by outcome, and the sum of their standardised differences."""

    exponent: float
    wins: tuple[str, ...]
    losses: tuple[str, ...]
    level: tuple[str, ...]
    missing: tuple[str, ...]
    sum: float

    @property
    def admissible(self) -> bool:
        """Whether it wins more than half of all tasks, those not run included, and loses none."""
        tasks = sum(map(len, (self.wins, self.losses, self.level, self.missing)))
        return not self.losses and 2 * len(self.wins) > tasks

    @property
    def open(self) -> bool:
        """Whether tasks are not run that could make it admissible, or no longer the best."""
        return bool(self.missing) and self._replace(wins=self.wins + self.missing, missing=()).admissible


def score(found: Found, tasks: Iterable[str], exponent: float, ours: str, theirs: Sequence[str]) -> Score:
    """Score the variant `ours` against the variants `theirs`, on each task at AdamW's rate."""
    by: dict[Outcome, list[str]] = {"better": [], "worse": [], "level": [], "not run yet": []}
    total = 0.0
    for task in tasks:
        each = [outcome(found.at(task, ours), found.at(task, other), found.seeds[task]) for other in theirs]
        if "not run yet" in each:
            by["not run yet"].append(task)
            continue
        by["worse" if "worse" in each else "better" if set(each) == {"better"} else "level"].append(task)
        better = found.better_of(task, theirs)
        assert better is not None
        total += standardised(found.at(task, ours), found.at(task, better))
    return Score(exponent, *(tuple(by[kind]) for kind in ("better", "worse", "level", "not run yet")), total)


def standardised(ours: Losses, theirs: Losses) -> float:
    """The mean paired difference in standard deviations of the differences; infinite where a run diverged."""
    pairs = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    if not all(map(math.isfinite, pairs)):
        return math.inf if any(math.isinf(loss) for loss in ours.values()) else -math.inf
    mean, deviation = statistics.fmean(pairs), statistics.stdev(pairs)
    if deviation == 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return mean / deviation


def choose(scores: Sequence[Score]) -> float:
    """The exponent that the rule chooses from scores of all exponents."""
    admissible = [one for one in scores if one.admissible]
    if not admissible:
        return 1.0
    return min(admissible, key=lambda one: (-len(one.wins), one.sum, -one.exponent)).exponent


class Comparison(NamedTuple):
    """One comparison of the warm-up with the paper's rule."""

    task: str
    basis: Literal["AdamW's rate", "each at its best"]
    outcome: Outcome
    difference: Difference
    again: Difference | None = None  # of the other seeds, where it went against the warm-up


def warmup(found: Found, tasks: Iterable[str], ours: str, paper: str) -> list[Comparison]:
    """Compare the variants `ours` and `paper` on all tasks, both at AdamW's rate and each at its best."""
    comparisons = []
    for task in tasks:
        pairs = {
            "AdamW's rate": (found.at(task, ours), found.at(task, paper)),
            "each at its best": (found.own_best(task, ours), found.own_best(task, paper)),
        }
        for basis, (with_it, without) in pairs.items():
            result, again = outcome(with_it, without, found.seeds[task]), None
            the_same = (with_it, without) == pairs["AdamW's rate"]  # both are best at AdamW's rate for every seed
            if result == "worse" and the_same:
                other = found.again(task, ours), found.again(task, paper)
                if outcome(*other, found.seeds[task]) != "not run yet":
                    result, again = outcome(*other, found.seeds[task]), difference(*other)
                    result = result if result == "worse" else "level"
            one = difference(with_it, without)
            comparisons.append(Comparison(task, basis, result, one, again))  # type: ignore[arg-type]
    return comparisons


def adopted(outcomes: Sequence[Outcome]) -> bool | None:
    """Whether something that is tried once is adopted, from its outcomes on all tasks; None while that is open."""
    if any(outcome in ("worse", "level") for outcome in outcomes):
        return False
    return None if "not run yet" in outcomes else True


def stays(comparisons: Sequence[Comparison]) -> bool | None:
    """Whether the warm-up stays the default; None while that is open."""
    outcomes = [one.outcome for one in comparisons]
    if "worse" in outcomes:
        return False
    return None if "not run yet" in outcomes else True
