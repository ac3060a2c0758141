"""The goals that adopt_hf is held to, and whether a case met them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from experiments.step.peers import EIGHT_BITS, FEW_UNOBSERVED, HALF_UNOBSERVED, OURS, PEERS

LARGE = 124_000_000  # elements from which on a GPU's step should run at the speed of a copy
MANY = 1_000_000  # elements from which on a step takes as long as its memory, and not as its calls

Case = Mapping[str, Any]


class Goal(NamedTuple):
    """One number of a case and its limit."""

    title: str
    value: Callable[[Case], float | None]  # as shown and judged; None: not measured
    limit: float
    at_least: bool = False
    form: str = "{:.2f}"
    smallest: int = 0  # elements below which it is not a goal

    def verdict(self, cases: Sequence[Case]) -> str:
        """Return the number and met or NOT met, as in the table. Several runs have a range, and how many met it."""
        if cases[0]["elements"] < self.smallest:
            return "no goal"
        values = sorted(value for value in map(self.value, cases) if value is not None)
        if not values:
            return "not measured"
        met = sum(value >= self.limit if self.at_least else value <= self.limit for value in values)
        low, high = self.form.format(values[0]), self.form.format(values[-1])
        shown = low if low == high else f"{low} to {high}"
        if 0 < met < len(values):
            return f"{shown}, met in {met} of {len(values)}"
        return f"{shown} {'met' if met else '**NOT met**'}"


def _ratio(peer: str, key: str, digits: int, case: Case) -> float | None:
    """Return the median of a row's ratio, rounded as it is shown."""
    found = (case["rows"].get(peer) or {}).get(key)
    return None if found is None else round(found["median"], digits)


def _to_deepspeed(case: Case) -> float | None:
    theirs = (case["rows"].get("deepspeed-cpu-adam") or {}).get("to_ours")
    return None if theirs is None else round(1 / theirs["median"], 2)


def _number(key: str, factor: float, digits: int, case: Case) -> float | None:
    value = (case["rows"].get(OURS) or {}).get(key)
    return None if value is None else round(value * factor, digits)


def _others(limit: float) -> list[Goal]:
    """Return the goals for other implementations of ADOPT: their time over ours."""
    others = ("torch-adopt-foreach", "torch-adopt-single", "timm", "pytorch_optimizer", "heavyball")
    return [
        Goal(
            f"{PEERS[name].title} / ours >= {limit:g}",
            partial(_ratio, name, "to_ours", 1),
            limit,
            at_least=True,
            form="{:.1f}",
        )
        for name in others
    ]


TEMPORARIES = Goal("temporaries 0 MiB", partial(_number, "temporaries_bytes", 2**-20, 1), limit=0.0, form="{:.1f}")
UNOBSERVED = [
    Goal(f"8-bit moments, {share} unobserved / all observed <= 1.30", partial(_ratio, peer, "to_dense", 2), limit=1.3)
    for share, peer in (("1 in 256", FEW_UNOBSERVED), ("half", HALF_UNOBSERVED))
]
TO_ADAMW = Goal("x AdamW fused <= 1.00", partial(_ratio, OURS, "to_adamw", 2), limit=1.0)

GOALS: dict[str, list[Goal]] = {
    "cpu": [
        TO_ADAMW,
        Goal("x DeepSpeedCPUAdam <= 1.00", _to_deepspeed, limit=1.0),
        Goal("x stream <= 1.10", partial(_ratio, OURS, "to_floor", 2), limit=1.1, smallest=MANY),
        TEMPORARIES,
        Goal("host, CPU time, x AdamW fused <= 0.50", partial(_ratio, OURS, "host_to_adamw", 2), limit=0.5),
        Goal("8-bit moments / ours <= 1.30", partial(_ratio, EIGHT_BITS, "to_ours", 2), limit=1.3),
        *UNOBSERVED,
        *_others(8),
    ],
    "cuda": [
        TO_ADAMW,
        Goal(
            "% of copy rate >= 90",
            partial(_number, "copy_share", 100, 0),
            limit=90,
            at_least=True,
            form="{:.0f}",
            smallest=LARGE,
        ),
        Goal("launches a group <= 3", partial(_number, "launches", 1, 1), limit=3, form="{:g}"),
        TEMPORARIES,
        Goal("8-bit moments / ours <= 1.00", partial(_ratio, EIGHT_BITS, "to_ours", 2), limit=1.0),
        *UNOBSERVED,
        *_others(3),
    ],
}
