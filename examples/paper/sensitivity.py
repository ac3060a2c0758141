"""What a user of ADOPT should tune first: learning rate x beta2 for ADOPT and AdamW, eps, and the clip exponent.

python -m examples.paper.sensitivity            # a shrunk GPT-2 on the standard library: minutes
python -m examples.paper.sensitivity --full     # the offline recipe as it is (examples/gpt2_pretraining, stdlib.yaml)

The grid is one run a cell. eps and the clip exponent are changed alone, from two bases: the paper's defaults (beta2 =
0.9999) and beta2 = 0.99, both at `BASE_RATE`. Three seeds at those bases and at AdamW's say what is noise: the
yardstick is the largest range of three seeds.

What to tune first is what gains most over its default, by more than the noise; the learning rate has no default, and
counts with its spread. The spread of an axis is the highest less the lowest loss along it, through the best cell of the
grid for learning rate and beta2, through the better base for eps and the clip exponent. Spreads compare ranges as wide
as the values here: a factor of 30 in the learning rate, a memory of 10 to 10,000 steps, six decades of eps, and three
clip exponents.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from examples.paper import command, gpt2
from examples.paper.claims import Claim, Verdict
from examples.paper.parts import InputError, Part

NAME = "sensitivity"
TITLE = "Sensitivity to the hyperparameters"
OPTIMIZERS = ("ADOPT", "AdamW")
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
BETA2S = (0.9, 0.95, 0.99, 0.999, 0.9999)
EPS = {"ADOPT": (1e-8, 1e-6, 1e-4, 1e-2), "AdamW": (1e-8,)}
CLIPS = ("none", 0.25, 1 / 3)
DEFAULT = {"ADOPT": {"eps": 1e-6, "clip_exp": 0.25}, "AdamW": {"eps": 1e-8, "clip_exp": "none"}}
DEFAULTS = {"beta2": 0.9999, **DEFAULT["ADOPT"]}
BASE_RATE = 1e-2
BASES = {"ADOPT": (0.9999, 0.99), "AdamW": (0.95,)}  # beta2
SEEDS = (0, 1, 2)
QUICK = {"max_steps": 500, "warmup_steps": 25, "n_embd": 64, "block_size": 64}
FULL = {"max_steps": 2400, "warmup_steps": 100, "n_embd": 128, "block_size": 128}
NOTE = (
    "The grid is one run a cell; eps and the clip exponent are changed alone, from beta2 = 0.9999 and from 0.99 at "
    f"learning rate {BASE_RATE:g}. Three seeds there, and of AdamW, say what is noise: the largest range of three. "
    "Reproduced or contradicted is what differs by more; beta2 = 0.9999 is not contradicted by runs shorter than its "
    "memory of 10,000 steps."
)
AXES = {"lr": "learning rate", "beta2": "beta2", "eps": "eps", "clip_exp": "clip exponent"}


def parts(quick: bool) -> list[Part]:
    wanted: list[dict[str, Any]] = []
    for optimizer in OPTIMIZERS:
        default = DEFAULT[optimizer]
        for beta2 in BETA2S:
            wanted += [{"optimizer": optimizer, "lr": lr, "beta2": beta2, **default, "seed": 0} for lr in RATES]
        for beta2 in BASES[optimizer]:
            base = {"optimizer": optimizer, "lr": BASE_RATE, "beta2": beta2, **default, "seed": 0}
            wanted += [base | {"eps": eps} for eps in EPS[optimizer]]
            if optimizer == "ADOPT":
                wanted += [base | {"clip_exp": clip} for clip in CLIPS]
            wanted += [base | {"seed": seed} for seed in SEEDS]
    distinct = {_name(settings): settings | (QUICK if quick else FULL) for settings in wanted}
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


def grid(rows: Sequence[dict[str, Any]], optimizer: str) -> dict[tuple[float, float], float]:
    """{(beta2, learning rate): held-out loss}, infinite where the run diverged."""
    return {
        (s["beta2"], s["lr"]): loss
        for s, loss in _losses(rows)
        if s["optimizer"] == optimizer and s["seed"] == 0 and all(s[k] == v for k, v in DEFAULT[optimizer].items())
    }


def line(rows: Sequence[dict[str, Any]], base: dict[str, Any], axis: str) -> dict[Any, float]:
    """{value of the axis: held-out loss} of the runs that are `base` but for `axis`."""
    fixed = {name: value for name, value in base.items() if name != axis}
    return {s[axis]: loss for s, loss in _losses(rows) if all(s[name] == value for name, value in fixed.items())}


def spread(losses: dict[Any, float]) -> float:
    """The highest less the lowest loss; infinite where a run diverged."""
    return max(losses.values()) - min(losses.values())


def bases(rows: Sequence[dict[str, Any]], optimizer: str) -> list[dict[str, Any]]:
    """The settings that eps, clip exponent and seed are changed from, those of them that have been run."""
    found = [_base(optimizer, beta2) for beta2 in BASES[optimizer]]
    return [base for base in found if line(rows, base, "seed")]


def noise(rows: Sequence[dict[str, Any]]) -> float:
    """The largest range of the seeds at the bases."""
    return max(spread(line(rows, base, "seed")) for name in OPTIMIZERS for base in bases(rows, name))


def best(rows: Sequence[dict[str, Any]], optimizer: str) -> tuple[float, float]:
    """(beta2, learning rate) of the best cell of the grid."""
    found = grid(rows, optimizer)
    return min(found, key=lambda cell: found[cell])


def axes(rows: Sequence[dict[str, Any]], optimizer: str) -> dict[str, dict[Any, float]]:
    """The losses along each axis, the axis of the largest spread first."""
    beta2, lr = best(rows, optimizer)
    through = _base(optimizer, beta2) | {"lr": lr}
    lines = {axis: line(rows, through, axis) for axis in ("lr", "beta2")}
    if optimizer == "ADOPT":
        better = min(bases(rows, optimizer), key=lambda base: line(rows, base, "seed")[0])
        lines |= {axis: line(rows, better, axis) for axis in ("eps", "clip_exp")}
    return dict(sorted(lines.items(), key=lambda item: -spread(item[1])))


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    conditions, yardstick = _conditions(rows), noise(rows)
    lowest = {name: _lowest_by_beta2(rows, name) for name in OPTIMIZERS}
    spreads = {name: spread(found) for name, found in lowest.items()}
    default, best_beta2 = max(lowest["ADOPT"]), min(lowest["ADOPT"], key=lambda beta2: lowest["ADOPT"][beta2])
    behind = lowest["ADOPT"][default] - lowest["ADOPT"][best_beta2]
    clipping = {base["beta2"]: line(rows, base, "clip_exp") for base in bases(rows, "ADOPT")}
    seeds = f"range of seeds {yardstick:.3f}"
    return [
        Claim(
            "ADOPT needs no tuning of beta2: its loss depends on it less than Adam's",
            "the title, and the theorem on convergence with any beta2; no number for GPT-2",
            f"beta2 {min(lowest['ADOPT'])} to {default}, each at its best learning rate: the loss of "
            f"{', of '.join(f'{name} varies by {_number(x)}' for name, x in spreads.items())}; {seeds}",
            conditions,
            _compare(spreads["ADOPT"] - spreads["AdamW"], yardstick),
        ),
        Claim(
            "beta2 = 0.9999 is a good default for ADOPT",
            "the default of the authors' code; an independent benchmark (arXiv 2509.01440) chose 0.999",
            f"beta2 {default}: {_number(lowest['ADOPT'][default])}; the best, {best_beta2}: "
            f"{_number(lowest['ADOPT'][best_beta2])}, each at its best learning rate; {seeds}",
            conditions,
            _default_verdict(behind, yardstick, rows[0]["result"]["steps"][-1]),
        ),
        Claim(
            "Clipping at t^(1/4) keeps ADOPT from harm in the first steps",
            "added by the authors to their code in November 2024; no number",
            "; ".join(f"beta2 {beta2}: {_texts(found, 'clip_exp')}" for beta2, found in clipping.items())
            + f"; {seeds}",
            conditions,
            _all_below([found[0.25] - found["none"] for found in clipping.values()], yardstick),
        ),
    ]


def gain(losses: dict[Any, float], axis: str) -> float:
    """What leaving ADOPT's default is worth along an axis. The learning rate has none: what its choice is worth."""
    return spread(losses) if axis == "lr" else losses.get(DEFAULTS[axis], max(losses.values())) - min(losses.values())


def advice(rows: Sequence[dict[str, Any]]) -> str:
    """What to tune first, and what to leave alone, from the gains and spreads that are above the noise."""
    found, yardstick = axes(rows, "ADOPT"), noise(rows)
    tune = sorted((axis for axis in found if gain(found[axis], axis) > yardstick), key=lambda x: -gain(found[x], x))
    leave = [axis for axis in found if axis not in tune and spread(found[axis]) > yardstick]
    beta2, lr = best(rows, "ADOPT")
    words = [f"Tune first: {', then '.join(AXES[axis] for axis in tune)}."] if tune else ["Nothing is worth tuning."]
    if leave:
        words += [f"Leave as it is: {', '.join(AXES[axis] for axis in leave)}, where other values are worse."]
    spreads = ", ".join(f"{AXES[axis]} {_number(spread(losses))}" for axis, losses in found.items())
    gains = ", ".join(f"{AXES[axis]} {_number(gain(losses, axis))}" for axis, losses in found.items() if axis != "lr")
    words += [
        f"Around the best setting (beta2 {beta2}, learning rate {lr:g}; eps and clip exponent around the better "
        f"of their two) the loss has a spread of {spreads}; leaving the default gains {gains}; the range of three "
        f"seeds is {yardstick:.3f}."
    ]
    return " ".join(words)


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name in OPTIMIZERS:
        found, (beta2s, rates) = grid(rows, name), _sides(rows)
        lines += [
            f"| {name}, held-out loss | " + " | ".join(f"lr {lr:g}" for lr in rates) + " |",
            "| --- |" + " --- |" * len(rates),
        ]
        cell = best(rows, name)
        for beta2 in beta2s:
            texts = [_number(found[beta2, lr]) for lr in rates]
            texts = [f"**{text}**" if (beta2, lr) == cell else text for text, lr in zip(texts, rates, strict=True)]
            lines.append(f"| beta2 {beta2} | " + " | ".join(texts) + " |")
        lines.append("")
    lines += ["| ADOPT from | axis | held-out loss | spread |", "| --- | --- | --- | --- |"]
    for base in bases(rows, "ADOPT"):
        for axis in ("eps", "clip_exp"):
            along = line(rows, base, axis)
            cells = (
                f"beta2 {base['beta2']}, lr {base['lr']:g}",
                AXES[axis],
                _texts(along, axis),
                _number(spread(along)),
            )
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"{_conditions(rows)}. Nats per token.", "", advice(rows)]
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw both grids as heat maps with one scale, and the lines of eps and clip exponent."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    beta2s, rates = _sides(rows)
    found = {name: grid(rows, name) for name in OPTIMIZERS}
    finite = sorted(loss for cells in found.values() for loss in cells.values() if math.isfinite(loss))
    # What diverged, or nearly, must not take the colours from the rest.
    low, high = finite[0], finite[len(finite) * 3 // 4]
    for axes_, (name, cells) in zip(panels, found.items(), strict=False):
        picture = axes_.imshow(
            [[cells[beta2, lr] for lr in rates] for beta2 in beta2s],
            vmin=low,
            vmax=high,
            cmap="viridis_r",
            aspect="auto",
        )
        for y, beta2 in enumerate(beta2s):
            for x, lr in enumerate(rates):
                loss = cells[beta2, lr]
                dark = loss > (low + high) / 2
                axes_.text(x, y, _number(loss), ha="center", va="center", color="white" if dark else "black")
        axes_.set(title=f"{name}: held-out loss", xlabel="learning rate", ylabel="beta2")
        axes_.set_xticks(range(len(rates)), [f"{lr:g}" for lr in rates])
        axes_.set_yticks(range(len(beta2s)), [f"{beta2:g}" for beta2 in beta2s])
    figure.colorbar(picture, ax=list(panels[:2]), extend="max")
    spreads = {name: axes(rows, name) for name in OPTIMIZERS}
    names = list(AXES)
    for offset, (name, colour) in enumerate((("ADOPT", "#2c5f8a"), ("AdamW", "#9aa7b5"))):
        values = [spread(spreads[name][axis]) if axis in spreads[name] else 0.0 for axis in names]
        places = [i + 0.4 * offset for i in range(len(names))]
        lengths = [value if math.isfinite(value) else 0.0 for value in values]
        panels[2].barh(places, lengths, height=0.38, color=colour, label=name)
        for place, value in zip(places, values, strict=True):
            if math.isinf(value):
                panels[2].text(0, place, " diverged", va="center")
    panels[2].axvline(noise(rows), color="#c0392b", linewidth=1, linestyle="--", label="range of three seeds")
    panels[2].set_yticks([i + 0.2 for i in range(len(names))], [AXES[axis] for axis in names])
    panels[2].invert_yaxis()
    panels[2].set(title="spread around the best setting", xlabel="nats per token")
    panels[2].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _losses(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    return [
        (row["settings"], math.inf if row["result"]["eval_loss"] is None else row["result"]["eval_loss"])
        for row in rows
    ]


def _base(optimizer: str, beta2: float) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr": BASE_RATE, "beta2": beta2, **DEFAULT[optimizer], "seed": 0}


def _sides(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """The beta2 and the learning rates of the grid."""
    cells = grid(rows, "ADOPT")
    return sorted({beta2 for beta2, _ in cells}), sorted({lr for _, lr in cells})


def _lowest_by_beta2(rows: Sequence[dict[str, Any]], optimizer: str) -> dict[float, float]:
    found, (beta2s, rates) = grid(rows, optimizer), _sides(rows)
    return {beta2: min(found[beta2, lr] for lr in rates) for beta2 in beta2s}


def _default_verdict(behind: float, yardstick: float, steps: int) -> Verdict:
    if behind <= yardstick:
        return "reproduced"
    return "not at this scale" if steps < 10_000 else "contradicted"


def _compare(difference: float, yardstick: float) -> Verdict:
    if difference < -yardstick:
        return "reproduced"
    return "contradicted" if difference > yardstick else "not at this scale"


def _all_below(differences: Sequence[float], yardstick: float) -> Verdict:
    found = [_compare(one, yardstick) for one in differences]
    if "contradicted" in found:
        return "contradicted"
    return "reproduced" if set(found) == {"reproduced"} else "not at this scale"


def _name(s: dict[str, Any]) -> str:
    words = [s["optimizer"].lower(), f"lr{s['lr']:g}", f"beta2-{s['beta2']:g}", f"eps{s['eps']:g}"]
    clip = s["clip_exp"] if s["clip_exp"] == "none" else f"{s['clip_exp']:.2f}"
    return "-".join([*words, f"clip-{clip}", f"seed{s['seed']}"])


def _number(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


def _texts(losses: dict[Any, float], axis: str) -> str:
    """'1e-08: 4.210, ...' in the order of the axis."""
    order = list(CLIPS) if axis == "clip_exp" else sorted(losses)
    names = {"none": "none", 0.25: "1/4", 1 / 3: "1/3"} if axis == "clip_exp" else {v: f"{v:g}" for v in losses}
    return ", ".join(f"{names[value]}: {_number(losses[value])}" for value in order)


def _conditions(rows: Sequence[dict[str, Any]]) -> str:
    result = rows[0]["result"]
    return (
        f"GPT-2 of {result['parameters']:,} parameters on the source of the standard library, {result['steps'][-1]} "
        f"steps of {result['sequences']} sequences, one seed in the grid"
    )


def main() -> None:
    command.main(sys.modules[__name__])


if __name__ == "__main__":
    main()
