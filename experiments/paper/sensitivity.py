"""The hyperparameters to tune first: learning rate x beta2 for ADOPT and AdamW, eps, and the clip exponent.

python -m experiments sensitivity            # a shrunk GPT-2 on the standard library
python -m experiments sensitivity --full     # the offline recipe as it is (examples/gpt2_pretraining, stdlib.yaml)

The grid is one run a cell, of seed 0. eps and the clip exponent are changed one at a time, from two bases: the paper's
defaults (beta2 = 0.9999) and beta2 = 0.99, both at `BASE_RATE`. The settings that seed 0 finds the best, and beta2 =
0.9999 at its best learning rate, are compared on eight other seeds, in pairs. What one run scatters by, the seed's own
effect removed, comes from these and gives two cells of the grid an interval, too (paired.pool).

What to tune first is what gains most over its default; the learning rate has no default, and counts with its spread.
"More" is more than chance makes of so many runs. The spread of an axis is the highest less the lowest loss along it,
through the best cell of the grid for learning rate and beta2, through the better base for eps and the clip exponent.
Spreads compare ranges as wide as the values here: a factor of 100 in the learning rate, a memory of 10 to 10,000 steps,
six decades of eps, and three clip exponents.
"""

import math
from collections.abc import Iterable
from typing import Any

from experiments.harness import pages
from experiments.harness.claims import Claim
from experiments.harness.paired import Difference, all_of, difference, verdict
from experiments.harness.runs import InputError, Part
from experiments.paper import gpt2
from experiments.paper.sensitivity_grid import (
    AXES,
    BASE_RATE,
    CLIPS,
    DEFAULT_BETA2,
    FIRST,
    MOMENTUM,
    OPTIMIZERS,
    OTHER_SEEDS,
    SEEDS,
    TUNED,
    Rows,
    axes,
    base,
    bases,
    best,
    by_seed,
    early,
    gain,
    grid,
    line,
    lowest_by_beta2,
    number,
    scatter,
    sides,
    spread,
    tuned,
    wanted,
)
from experiments.paper.sensitivity_plot import plot as plot  # what evidence asks of an experiment

NAME = "sensitivity"
TITLE = "Sensitivity to the hyperparameters"
QUICK = {"max_steps": 500, "warmup_steps": 25, "n_embd": 64, "block_size": 64}
FULL = {"max_steps": 2400, "warmup_steps": 100, "n_embd": 128, "block_size": 128}
NOTE = (
    "The grid is one run a cell, of seed 0; eps and the clip exponent are changed one at a time, from beta2 = 0.9999 "
    f"and from 0.99 at learning rate {BASE_RATE:g}. Settings with several seeds are compared by paired differences. "
    "Single runs of one seed differ if their spread is above what the scatter of the settings with several seeds makes "
    "of so many runs by chance (95 %, Tukey's range). 500 steps are short against a memory of 10,000: what they say of "
    "beta2 = 0.9999, they say of short runs only. The model can tell settings of one "
    "optimizer apart; it cannot tell whether the second moment is worth having: the gradient's norm is at most 1, so "
    f"the root of v is about 0.0024 or less, and eps = {MOMENTUM:g} makes plain momentum of ADOPT. "
    "More seeds and tasks, and ADOPTW, are in [defaults.md](defaults.md)."
)


def parts(quick: bool) -> list[Part]:
    """The runs, those that are wanted twice once."""
    distinct = {_name(settings): settings | (QUICK if quick else FULL) for settings in wanted()}
    return [Part(NAME, name, settings) for name, settings in distinct.items()]


def one(
    optimizer: str, lr: float, beta2: float, eps: float, clip_exp: float | str, seed: int, **size: int
) -> dict[str, Any]:
    """Train once; see gpt2.train for what comes back. `size` has the names of QUICK."""
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    options: dict[str, Any] = gpt2.QUICK | size | {"logging_steps": 10, "learning_rate": lr, "seed": seed}
    # The schedule goes down to a tenth of the learning rate, as in the recipe.
    options["lr_scheduler_kwargs"] = f'{{"min_lr": {lr / 10}}}'
    if optimizer == "ADOPT":
        options |= {"optim": "adopt", "optim_args": f"{gpt2.PAPERS},beta2={beta2},eps={eps},clip_exp={clip_exp}"}
    else:
        options |= {"optim": "adamw_torch", "adam_beta2": beta2, "adam_epsilon": eps}
    return gpt2.train(gpt2.STDLIB, options)


def claims(rows: Rows) -> list[Claim]:
    """The rows of the page, each with its own difference."""
    conditions, single = _conditions(rows), scatter(rows)
    lowest = {name: lowest_by_beta2(rows, name) for name in OPTIMIZERS}
    spreads = {name: spread(found) for name, found in lowest.items()}
    beta2s, default = sides(rows)[0], base("ADOPT", *DEFAULT_BETA2)
    less = Difference(spreads["ADOPT"] - spreads["AdamW"], single.half(4), 1)
    at_best = difference(by_seed(rows, default, OTHER_SEEDS), by_seed(rows, tuned("ADOPT"), OTHER_SEEDS))
    at_base = difference(*(by_seed(rows, base("ADOPT", beta2), SEEDS) for beta2 in (0.9999, 0.99)))
    duel = difference(*(by_seed(rows, tuned(name), OTHER_SEEDS) for name in OPTIMIZERS))
    grids = ", ".join(
        f"{name} {number(grid(rows, name).get(TUNED[name]))} ({cell(*TUNED[name])})" for name in OPTIMIZERS
    )
    other = difference(by_seed(rows, default, OTHER_SEEDS), by_seed(rows, tuned("AdamW"), OTHER_SEEDS))
    others = f"other seeds than the 0 that chose: {OTHER_SEEDS[0]} to {OTHER_SEEDS[-1]}"
    short = "after so few steps; of runs longer than the memory of 10,000 it says nothing"
    clips = {at["beta2"]: (at, at | {"clip_exp": "none"}) for at in bases(rows, "ADOPT")}
    first = {beta2: difference(*(early(rows, at) for at in pair)) for beta2, pair in clips.items()}
    last = {beta2: difference(*(by_seed(rows, at) for at in pair)) for beta2, pair in clips.items()}
    momentum = difference(*(by_seed(rows, tuned("ADOPT") | {"eps": eps}, SEEDS) for eps in (1e-6, MOMENTUM)))
    benchmark = "the default of the authors' code; an independent benchmark (arXiv 2509.01440) chose 0.999"
    authors = "added by the authors to their code in November 2024; no number"
    return [
        Claim(
            "ADOPT needs no tuning of beta2: its loss depends on it less than Adam's",
            "the title, and the theorem on convergence with any beta2; no number for GPT-2",
            f"beta2 {beta2s[0]} to {beta2s[-1]}, each at its best learning rate: the loss of "
            f"{', of '.join(f'{name} varies by {number(x)}' for name, x in spreads.items())}: {_interval(less)}",
            f"{conditions}, one seed",
            verdict(less),
        ),
        Claim(
            "beta2 = 0.9999 is a good default for ADOPT: lower than at the best beta2, each at its best learning rate",
            benchmark,
            f"{cell(*DEFAULT_BETA2)}{_edge(rows, DEFAULT_BETA2)} less {cell(*TUNED['ADOPT'])}: {at_best.text()}",
            f"{conditions}, {others}; {short}",
            verdict(at_best),
        ),
        Claim(
            f"beta2 = 0.9999 is a good default for ADOPT: lower than 0.99, both at learning rate {BASE_RATE:g}",
            benchmark,
            f"0.9999 less 0.99: {at_base.text()}",
            f"{conditions}, seeds {_listed(SEEDS)}; {short}",
            verdict(at_base),
        ),
        Claim(
            "Tuned ADOPT ends lower than tuned AdamW",
            "the paper's tables and figures for other models; no number for GPT-2",
            f"ADOPT less AdamW: {duel.text()}; in the grid {grids}; with {cell(*DEFAULT_BETA2)}: {other.text()}",
            f"{conditions}, learning rate and beta2 chosen in the grid, {others}",
            verdict(duel),
        ),
        Claim(
            f"Clipping at t^(1/4) keeps ADOPT from harm in the first {FIRST} steps",
            authors,
            f"training loss with it less without: {_by_beta2(first)}",
            f"{conditions}, learning rate {BASE_RATE:g}, seeds {_listed(SEEDS)}",
            all_of([verdict(found) for found in first.values()]),
        ),
        Claim(
            "Clipping at t^(1/4) still helps at the end",
            authors,
            f"held-out loss with it less without: {_by_beta2(last)}",
            f"{conditions}, learning rate {BASE_RATE:g}, seeds {_listed(SEEDS)}",
            all_of([verdict(found) for found in last.values()]),
        ),
        Claim(
            f"The division by the root of v helps: eps = 1e-6 ends lower than {MOMENTUM:g}, plain momentum here",
            "what Adam and ADOPT are for; no number",
            f"{cell(*TUNED['ADOPT'])}, eps 1e-6 less {MOMENTUM:g}: {momentum.text()}",
            f"{conditions}, seeds {_listed(SEEDS)}",
            verdict(momentum),
        ),
    ]


def advice(rows: Rows) -> str:
    """Say what to tune first and what to leave, from the gains and spreads that are above those of chance."""
    found, single = axes(rows, "ADOPT"), scatter(rows)
    chance = {axis: single.spread(len(losses)) for axis, losses in found.items()}
    tune = [axis for axis in found if gain(found[axis], axis) > chance[axis]]
    tune.sort(key=lambda axis: -gain(found[axis], axis))
    leave = [axis for axis in found if axis not in tune and spread(found[axis]) > chance[axis]]
    words = [f"Tune first: {', then '.join(AXES[axis] for axis in tune)}."] if tune else ["Nothing is worth tuning."]
    if leave:
        words += [f"Leave as it is: {', '.join(AXES[axis] for axis in leave)}, where other values are worse."]
    sizes = sorted({len(losses) for losses in found.values()})
    limits = [f"{single.spread(n):.3f}" for n in sizes]
    spreads = ", ".join(f"{AXES[axis]} {number(spread(losses))}" for axis, losses in found.items())
    gains = ", ".join(f"{AXES[axis]} {number(gain(losses, axis))}" for axis, losses in found.items() if axis != "lr")
    words += [
        f"Around the best setting ({cell(*best(rows, 'ADOPT'))}; eps and clip exponent around the better "
        f"of their two) the loss has a spread of {spreads}; leaving the default gains {gains}; by chance "
        f"{_listed(sizes)} single runs have a spread of up to {_listed(limits)} (95 %)."
    ]
    return " ".join(words)


def table(rows: Rows) -> str:
    """The two grids, the lines of eps and clip exponent, and the advice."""
    blocks = []
    beta2s, rates = sides(rows)
    for name in OPTIMIZERS:
        found = grid(rows, name)
        chosen, lines = best(rows, name), []
        for beta2 in beta2s:
            texts = [number(found.get((beta2, lr))) for lr in rates]
            texts = [f"**{text}**" if (beta2, lr) == chosen else text for text, lr in zip(texts, rates, strict=True)]
            lines.append([f"beta2 {beta2}", *texts])
        blocks.append(pages.table([f"{name}, held-out loss", *(f"lr {lr:g}" for lr in rates)], lines))
    lines = []
    for at in bases(rows, "ADOPT"):
        for axis in ("eps", "clip_exp"):
            along = line(rows, at, axis)
            lines.append([cell(at["beta2"], at["lr"]), AXES[axis], _texts(along, axis), number(spread(along))])
    blocks.append(pages.table(["ADOPT from", "axis", "held-out loss", "spread"], lines))
    blocks.append(f"{_conditions(rows)}, one seed in these tables. Nats per token.")
    return "\n\n".join([*blocks, advice(rows)])


def _name(s: dict[str, Any]) -> str:
    words = [s["optimizer"].lower(), f"lr{s['lr']:g}", f"beta2-{s['beta2']:g}", f"eps{s['eps']:g}"]
    clip = s["clip_exp"] if s["clip_exp"] == "none" else f"{s['clip_exp']:.2f}"
    return "-".join([*words, f"clip-{clip}", f"seed{s['seed']}"])


def cell(beta2: float, lr: float) -> str:
    """The words for a cell of the grid."""
    return f"beta2 {beta2}, lr {lr:g}"


def _interval(found: Difference) -> str:
    """Return the text of one pair's difference, whose interval comes from the scatter of other runs."""
    if not math.isfinite(found.half + found.mean):
        return f"a difference of {found.mean:+.3f}, without an interval"
    return f"a difference of {found.mean:+.3f} ± {found.half:.3f}, from the scatter of single runs"


def _edge(rows: Rows, chosen: tuple[float, float]) -> str:
    """Say so where the learning rate is the lowest or the highest of the grid, so that no best was found."""
    beta2, lr = chosen
    tried = sorted(rate for at, rate in grid(rows, "ADOPT") if at == beta2)
    return ", an edge of the grid," if tried and lr in (tried[0], tried[-1]) else ""


def _listed(found: Iterable[object]) -> str:
    return ", ".join(map(str, found))


def _by_beta2(found: dict[float, Difference]) -> str:
    return "; ".join(f"beta2 {beta2}: {one_.text()}" for beta2, one_ in found.items())


def _texts(losses: dict[Any, float], axis: str) -> str:
    """'1e-08: 4.210, ...' in the order of the axis."""
    order = list(CLIPS) if axis == "clip_exp" else sorted(losses)
    names = {"none": "none", 0.25: "1/4", 1 / 3: "1/3"} if axis == "clip_exp" else {v: f"{v:g}" for v in losses}
    return ", ".join(f"{names[value]}: {number(losses[value])}" for value in order)


def _conditions(rows: Rows) -> str:
    result = rows[0]["result"]
    return (
        f"GPT-2 of {result['parameters']:,} parameters on the source of the standard library, {result['steps'][-1]} "
        f"steps of {result['sequences']} sequences"
    )
