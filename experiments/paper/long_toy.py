"""The toy problem with k = 50 to its end, and what the clip costs: tens of millions of steps, in C, in two minutes.

python -m experiments long_toy    # --full is the same

The learning rate is 0.01 / sqrt(1 + 0.01 t): with the 0.1 / sqrt(1 + 0.1 t) of `toy` the noise of single steps keeps
theta off the minimiser for hundreds of millions of steps. The steps are 5 k^4 and the learning rate at their end goes
with 1 / k^2, so the end is as near for every k. One step of a few elements takes an optimizer of torch 10
microseconds, and this needs a billion: long_toy.c has the updates of Adam, AMSGrad and ADOPT for 64 seeds at once, and
a test compares them with torch.optim and adopt_hf.
"""

import ctypes
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments.harness import pages
from experiments.harness.claims import Claim, Verdict
from experiments.harness.runs import InputError, Part
from experiments.paper.toy import BETA2, CLIPPED, COLOURS, Row, cell, converges, curves, failed, of, slower

NAME = "long_toy"
TITLE = "Toy problem to its end, and what the clip costs"
SEEDS = 64  # LANES in long_toy.c
KINDS = ("Adam", "AMSGrad", "ADOPT", CLIPPED)  # in the order of long_toy.c
EPS = {"Adam": 1e-8, "AMSGrad": 1e-8, "ADOPT": 1e-6, CLIPPED: 1e-6}
KS = (10, 20, 30, 50)
PER_K4 = 5  # steps, in k^4
HALF = -0.5
MARKS, POINTS = 400, 40  # where the mean is looked at, and what is kept of it
FACTOR = 3  # "about": between a third and three times
NOTE = (
    f"The gradients of `toy`, the learning rate 0.01 / sqrt(1 + 0.01 t), {PER_K4} k^4 steps, and the rules of `toy`. "
    "With a small β2 the large gradient is k times the root of v, so t^(1/4) cuts it off for the first k^4 steps, and "
    "what is left of the gradients points the wrong way. *Half way* is the first step from which the mean of the seeds "
    f"stays below {HALF}. That the clip costs about k^4 steps is reproduced if with the smallest β2 it brings half way "
    f"between k^4 / {FACTOR} and {FACTOR} k^4 steps later for every k, else contradicted."
)


class Library(NamedTuple):
    """The two functions of long_toy.c."""

    gradients: Any
    descend: Any


@cache
def library() -> Library:
    """Compile and load long_toy.c.

    Raises:
        InputError: If there is no compiler, or its result cannot be loaded. The text says why.
    """
    from adopt_hf.backends.cpu import compiler

    try:
        loaded = compiler.load(Path(__file__).with_suffix(".c"))
    except RuntimeError as error:
        raise InputError(str(error)) from error
    whole, real, address = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
    loaded.toy_gradients.argtypes = (whole, whole, whole, address)
    loaded.toy_descend.argtypes = (ctypes.c_int32, whole, whole, *[real] * 5, whole, address, address, address)
    loaded.toy_gradients.restype = loaded.toy_descend.restype = None
    return Library(loaded.toy_gradients, loaded.toy_descend)


def gradients(k: int, steps: int) -> np.ndarray:
    """Return the gradients of the first steps, (steps, SEEDS)."""
    found = np.empty((steps, SEEDS))
    library().gradients(k, 0, steps, found.ctypes.data)
    return found


def descend(
    optimizer: str, k: int, beta2: float, steps: int, lr: float, decay: float, marks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return theta of all seeds after `marks` finished steps, (marks, SEEDS), and its mean over the last tenth."""
    marks = np.ascontiguousarray(marks, dtype=np.int64)
    curve, total = np.empty((len(marks), SEEDS)), np.empty(SEEDS)
    addresses = (marks.ctypes.data, curve.ctypes.data, total.ctypes.data)
    kind = KINDS.index(optimizer)
    library().descend(kind, k, steps, 0.9, beta2, EPS[optimizer], lr, decay, len(marks), *addresses)
    return curve, total / (steps // 10)


def parts(quick: bool) -> list[Part]:
    """The runs; the same for both sizes. All four optimizers with the largest k, ADOPT and its clip with the others."""
    return [
        Part(
            NAME,
            f"k{k}-{optimizer}-{beta2}".replace(", ", "-"),
            {
                **{"problem": f"k={k}", "k": k, "optimizer": optimizer, "beta2": beta2},
                **{"steps": PER_K4 * k**4, "seeds": SEEDS, "lr": 0.01, "decay": 0.01},
            },
        )
        for k in KS
        for optimizer in (KINDS if k == max(KS) else ("ADOPT", CLIPPED))
        for beta2 in BETA2
    ]


def one(
    problem: str, k: int, optimizer: str, beta2: float, steps: int, seeds: int, lr: float, decay: float
) -> dict[str, Any]:
    """Run one optimizer with one beta2 from theta = 0.

    Returns:
        "step", "mean", "low", "high": the curve, as of `descent.descend`; "final" and "error" too; "half_way": the
        first step from which the mean stays below HALF, None if it does not.

    Raises:
        InputError: If a setting is out of range, or long_toy.c cannot be compiled.
    """
    if optimizer not in KINDS:
        raise InputError(f"optimizer must be one of {'; '.join(KINDS)}; got {optimizer!r}")
    if seeds != SEEDS or problem != f"k={k}":
        raise InputError(f"needs seeds={SEEDS} and the problem k={k}; got {seeds=}, {problem=}")
    if k < 2 or steps < 10 or lr <= 0 or decay < 0 or not 0 <= beta2 < 1:
        raise InputError(
            f"needs k >= 2, steps >= 10, lr > 0, decay >= 0 and 0 <= beta2 < 1; got {k=}, {steps=}, {lr=}, {decay=}, "
            f"{beta2=}"
        )
    marks = np.unique(np.geomspace(1, steps, MARKS).round().astype(np.int64))
    curve, final = descend(optimizer, k, beta2, steps, lr, decay, marks)
    mean = curve.mean(1)
    # The last mark above HALF, and the one after it.
    late = int(np.flatnonzero(mean >= HALF)[-1]) + 1 if (mean >= HALF).any() else 0
    kept = np.unique(np.linspace(0, len(marks) - 1, POINTS).round().astype(int))
    low, high = np.quantile(curve[kept], (0.1, 0.9), axis=1)
    return {
        "step": marks[kept].tolist(),
        **{name: values.round(4).tolist() for name, values in (("mean", mean[kept]), ("low", low), ("high", high))},
        "final": round(float(final.mean()), 4),
        "error": round(1.96 * float(final.std(ddof=1)) / SEEDS**0.5, 4),
        "half_way": int(marks[late]) if late < len(marks) else None,
    }


def later(rows: Iterable[Row], beta2: float) -> dict[int, tuple[int | None, int | None]]:
    """{k: (the step of half way without the clip, and with it)}."""
    rows = list(rows)
    found = {}
    for k in KS:
        plain, clipped = (of(rows, f"k={k}", name).get(beta2) for name in ("ADOPT", CLIPPED))
        if plain and clipped:
            found[k] = (plain["result"]["half_way"], clipped["result"]["half_way"])
    return found


def cost(found: Mapping[int, tuple[int | None, int | None]]) -> Verdict:
    """Judge the claim that the clip costs about k^4 steps; see NOTE."""
    if any(plain is None for plain, _ in found.values()):
        return "not at this scale"
    for k, (plain, clipped) in found.items():
        if plain is None or clipped is None or not k**4 / FACTOR <= clipped - plain <= FACTOR * k**4:
            return "contradicted"
    return "reproduced"


def claims(rows: Iterable[Row]) -> list[Claim]:
    """The claims of figure 1 with the largest k, and the cost of the clip."""
    rows, k = list(rows), max(KS)
    adam, amsgrad, adopt, clipped = (of(rows, f"k={k}", name) for name in KINDS)
    steps = next(iter(adopt.values()))["settings"]["steps"]
    conditions = f"θ after {steps:,} steps in C, {SEEDS} seeds, learning rate 0.01 / sqrt(1 + 0.01 t)"
    figure, code = "figure 1, no number", "authors' code since November 2024, no number"
    judged = (
        (f"ADOPT reaches -1 for every β2, k = {k}, to the end", figure, adopt, converges(adopt)),
        (
            f"Adam does not for small β2, k = {k}, to the end",
            figure,
            adam,
            "reproduced" if any(map(failed, adam.values())) else "contradicted",
        ),
        (f"AMSGrad does, slowly, k = {k}, to the end", figure, amsgrad, slower(amsgrad, adopt)),
        (f"The clipping at t^(1/4) keeps the convergence, k = {k}, to the end", code, clipped, converges(clipped)),
    )
    found = [
        Claim(claim, paper, ", ".join(f"{cell(row)} (β2 {beta2:g})" for beta2, row in of_it.items()), conditions, said)
        for claim, paper, of_it, said in judged
    ]
    smallest = later(rows, min(BETA2))
    ours = "; ".join(
        f"k = {k}: {_steps(plain)} without, {_steps(with_)} with" for k, (plain, with_) in smallest.items()
    )
    claim = "The clipping at t^(1/4) costs about k^4 steps for small β2"
    conditions = f"steps to half way, β2 {min(BETA2):g}, {SEEDS} seeds"
    return [*found, Claim(claim, "not in the paper: it follows from t^(1/4) < k", ours, conditions, cost(smallest))]


def table(rows: Iterable[Row]) -> str:
    """Return where the seeds end, and the steps to half way without and with the clip."""
    rows = list(rows)
    title = [f"β2 = {beta2:g}" for beta2 in BETA2]
    ends, half_ways = [], []
    for k in KS:
        for optimizer in KINDS:
            found = of(rows, f"k={k}", optimizer)
            if found:
                cells = [cell(found[beta2]) if beta2 in found else "-" for beta2 in BETA2]
                steps = next(iter(found.values()))["settings"]["steps"]
                ends.append([f"{k}, {steps:,}", optimizer, *cells])
    for k in KS:
        for clip in (0, 1):
            cells = [_steps(later(rows, beta2).get(k, (None, None))[clip]) for beta2 in BETA2]
            half_ways.append([f"{k} ({k**4:,})", ("none", "t^(1/4)")[clip], *cells])
    tables = ((["k, steps", "optimizer"], ends), (["half way, k (k^4)", "clip"], half_ways))
    return "\n\n".join(pages.table([*head, *title], lines) for head, lines in tables)


def plot(rows: Iterable[Row], path: Path) -> None:
    """Draw the curves of the largest k, a panel a beta2."""
    rows = list(rows)
    figure = Figure(figsize=(14, 3.4), layout="constrained")
    for ax, beta2 in zip(figure.subplots(1, len(BETA2), sharey=True), BETA2, strict=True):
        curves(ax, {name: of(rows, f"k={max(KS)}", name).get(beta2) for name in COLOURS}, -1.0)
        ax.axvline(max(KS) ** 4, color="black", linewidth=0.6, linestyle="--")
        ax.set_title(f"β2 = {beta2:g}", fontsize=10)
        ax.set_xlim(10, None)
        if beta2 == BETA2[0]:
            ax.set_ylabel(f"θ, k = {max(KS)}")
            ax.text(max(KS) ** 4, 0.5, "k^4 ", ha="right", fontsize=8)
            handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.supxlabel("step", fontsize=9)
    figure.savefig(path, dpi=90)


def _steps(step: int | None) -> str:
    return "never" if step is None else f"{step:,}"
