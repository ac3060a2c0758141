"""The figures of the page: the loss over the steps, and over the learning rates."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from adopt_hf.commands.compare import outcome
from adopt_hf.commands.compare.outcome import HELD_OUT, TRAINING
from adopt_hf.commands.compare.page import svg
from adopt_hf.commands.compare.page.marked import Marked
from adopt_hf.commands.compare.plan import lr_text
from adopt_hf.commands.compare.table import lr_short, valley
from adopt_hf.commands.compare.verdict import LOSS, loss_name, number

NARROW = 307  # pixels, on a phone
WIDE = {2: 452, 3: 284}  # in two and in three columns
COLORS = 6
SETTLED = 0.2  # of the steps are left out where the range of a chart is chosen: the loss falls fast there
CUT = 3.0  # a chart is at most so many times as high as half of the lines need


def color(found: Mapping[str, Any], optim: str) -> int:
    """Return the number of an optimizer's colour."""
    return int(found["plan"]["optims"].index(optim)) % COLORS


def key(found: Mapping[str, Any], optim: str) -> str:
    """Return the mark of an optimizer's line."""
    return f'<span class="key c{color(found, optim)}{" dashed" if optim == found["reference"] else ""}"></span>'


def legend(found: Mapping[str, Any]) -> str:
    """Return the names with their lines."""
    items = [f"<li>{key(found, optim)}{escape(optim)}</li>" for optim in found["plan"]["optims"]]
    return f'<ul class="legend">{"".join(items)}</ul>'


def both(draw: Callable[[int, str], str], columns: int = 2) -> str:
    """Return a chart in both widths, of which the style shows one."""
    widths = (("narrow", NARROW), ("wide", WIDE[columns]))
    return "".join(f'<div class="{name}">{draw(width, name)}</div>' for name, width in widths)


# ----- over the steps -----


def curves(found: Mapping[str, Any]) -> str:
    """Return the section of the curves: a chart for each learning rate, held out and in training."""
    lrs = found["plan"]["lrs"]
    columns = 3 if len(lrs) in (3, 5) or len(lrs) > 6 else 2
    kinds = {}
    for name in (HELD_OUT, TRAINING):
        charts = [_curve_chart(found, name, lr, i, columns) for i, lr in enumerate(lrs)]
        if any(charts):
            kinds[name] = "".join(charts)
    if not kinds:
        return ""
    text = f"{_band_text(found)} The steep beginning is cut off."
    if TRAINING in kinds:
        text += " A point of the training loss is the mean of the last tenth of the logged losses."
    if len(lrs) == 1:  # side by side
        shown = f'<div class="grid">{"".join(kinds.values())}</div>'
    else:
        grid = "grid three" if columns == 3 else "grid"
        heads = {name: LOSS[name == HELD_OUT].capitalize() for name in kinds}
        shown = "".join(f'<h3>{heads[name]}</h3><div class="{grid}">{kind}</div>' for name, kind in kinds.items())
    return f'<section id="curves"><h2>The way down</h2><p class="muted">{text}</p>{legend(found)}{shown}</section>\n'


def _band_text(found: Mapping[str, Any]) -> str:
    if found["plan"]["seeds"] == 1:
        return "One seed, so there is no band."
    return "The line is the mean of the seeds, and the band goes from the lowest to the highest."


def _line(found: Mapping[str, Any], name: str, optim: str, lr: float) -> list[tuple[float, float, float, float]]:
    """Return (step, mean, lowest, highest) over the finished runs of a setting, where all of them have a loss."""
    runs = [run for run in found["runs"] if run["status"] == "finished" and (run["optim"], run["lr"]) == (optim, lr)]
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for step, loss in outcome.judged(run["curves"], name):
            if loss is not None:
                by_step.setdefault(step, []).append(loss)
    whole = [(step, values) for step, values in sorted(by_step.items()) if len(values) == len(runs)]
    return [(step, statistics.fmean(values), min(values), max(values)) for step, values in whole]


def _range(found: Mapping[str, Any], name: str) -> tuple[float, float, float] | None:
    """Return the last step, the lowest and the highest loss of all charts of a kind, without the first steps.

    A line that goes far above the others is cut off, so that the others can be told apart.
    """
    lines = [_line(found, name, optim, lr) for optim in found["plan"]["optims"] for lr in found["plan"]["lrs"]]
    lines = [line for line in lines if line]
    if not lines:
        return None
    last = max(line[-1][0] for line in lines)
    settled = [[point for point in line if point[0] >= SETTLED * last] or line[-1:] for line in lines]
    lowest = min(low for line in settled for *_, low, _ in line)
    tops = [max(high for *_, high in line) for line in settled]
    highest = min(max(tops), lowest + CUT * (statistics.median(tops) - lowest))
    room = 0.04 * (highest - lowest or 1.0)
    return last, lowest - room, highest + room


def _curve_chart(found: Mapping[str, Any], name: str, lr: float, i: int, columns: int) -> str:
    limits = _range(found, name)
    lines = []
    optims: Sequence[str] = sorted(found["plan"]["optims"], key=lambda optim: optim != found["reference"])
    for optim in optims:
        points = svg.thinned(_line(found, name, optim, lr))
        if points:
            lines.append(
                svg.Line(
                    color(found, optim),
                    optim == found["reference"],
                    [(step, mean) for step, mean, _, _ in points],
                    [(step, low, high) for step, _, low, high in points],
                )
            )
    if not lines or limits is None:
        return ""
    last, lowest, highest = limits
    label = f"{LOSS[name == HELD_OUT]} over the steps at learning rate {lr_text(lr)}"

    def draw(width: int, size: str) -> str:
        x, y = svg.linear(0, last), svg.linear(lowest, highest)
        return svg.chart(width, x, y, lines, "step", label, f"{name}-{i}-{size}")

    title = LOSS[name == HELD_OUT] if len(found["plan"]["lrs"]) == 1 else f"learning rate {lr_text(lr)}"
    return f"<figure><figcaption>{title}</figcaption>{both(draw, columns)}</figure>"


# ----- over the learning rates -----


def learning_rates(found: Mapping[str, Any], marked: Marked) -> str:
    """Return the section of the learning rates, if there are several."""
    lrs = found["plan"]["lrs"]
    if len(lrs) < 2 or not found["best"]:
        return ""
    lines = []
    for optim in sorted(found["plan"]["optims"], key=lambda optim: optim != found["reference"]):
        of = [one for one in found["settings"] if one["optim"] == optim and one["final"]["mean"] is not None]
        runs = [run for run in found["runs"] if run["optim"] == optim and run.get("final") is not None]
        points = [(one["lr"], one["final"]["mean"]) for one in of]
        dots = [(run["lr"], run["final"]) for run in runs]
        lines.append(svg.Line(color(found, optim), optim == found["reference"], points, (), dots))
    values = [loss for line in lines for _, loss in (*line.points, *line.dots)]
    room = 0.06 * ((max(values) - min(values)) or 1.0)

    def draw(width: int, size: str) -> str:
        x = svg.Axis(lrs[0] / 1.15, lrs[-1] * 1.15, [(lr, lr_text(lr)) for lr in lrs], is_log=True)
        y = svg.linear(min(values) - room, max(values) + room)
        label = f"final {loss_name(found)} over the learning rates"
        return svg.chart(width, x, y, lines, "learning rate", label, f"rates-{size}")

    said = [_best(found, marked, i) for i in range(len(found["best"]))]
    chart = f"<figure><figcaption>final {loss_name(found)}</figcaption>{both(draw)}</figure>"
    text = (
        f'<p class="muted">The line is the mean of the seeds, a dot is a run.</p><ul class="said">{"".join(said)}</ul>'
    )
    return (
        f'<section id="rates"><h2>Learning rates</h2>{legend(found)}<div class="grid">{chart}'
        f'<div class="beside">{text}</div></div></section>\n'
    )


def _best(found: Mapping[str, Any], marked: Marked, i: int) -> str:
    """Return the best learning rate of an optimizer and its valley, in the words of the table."""
    best = found["best"][i]
    path = f"best.{i}"
    head, rest = valley(best).split(": ", 1)
    assert head == best["optim"]
    places = (
        (lr_short(best["valley"]["low"]), f"{path}.valley.low", lr_short),
        (lr_short(best["valley"]["high"]), f"{path}.valley.high", lr_short),
    )
    before, after = rest.split(" goes from ")
    before = before.replace(lr_text(best["lr"]), marked(f"{path}.lr", lr_text), 1)
    ends = " to ".join(marked(place, form) for _, place, form in places)
    factor = marked(f"{path}.valley.factor", lambda value: f"{value:.1f}")
    about = f"a factor of {'at least ' if 'at least' in after else ''}{factor}."
    mean = marked.mean(f"{path}.final", number)
    return f"<li>{key(found, head)}<b>{escape(head)}</b> {before} goes from {ends}, {about} Final loss {mean}.</li>"
