"""The sections of the page that are text: the verdict, the optimizers, and the differences."""

from collections.abc import Mapping
from html import escape
from typing import Any

from adopt_hf.commands.compare import table
from adopt_hf.commands.compare.page.figures import color, key
from adopt_hf.commands.compare.page.marked import Marked, text
from adopt_hf.commands.compare.plan import lr_text
from adopt_hf.commands.compare.verdict import loss_name, number, percent


def steps(value: float) -> str:
    """Return a number of steps."""
    return f"{value:,.0f}"


def ms(value: float, beside: float | None = None) -> str:
    """Return milliseconds."""
    return f"{value:,.1f}"


# ----- the verdict -----


def top(found: Mapping[str, Any], marked: Marked) -> str:
    """Return the head of the page: the verdict of each optimizer, and what belongs to it."""
    runs = f"{marked('runs_finished')} of {marked('runs_planned')} runs"
    if found["runs_failed"]:
        runs += f', <span class="bad">{marked("runs_failed")} failed</span>'
    said = []
    for i, one in enumerate(found["verdicts"]):
        tag = "h1" if i == 0 else "h2"
        said.append(f'<{tag} class="verdict">{text(one["sentence"])}</{tag}>')
        if one["interval"]:
            said.append(f'<p class="conditions">{text(" ".join(one["interval"]))}</p>')
    said.append(f'<p class="conditions">{text(" ".join(found["conditions"]))}</p>')
    date = escape(found["made"][:10])
    eyebrow = f'<p class="eyebrow">adopt-hf compare<span>{runs}</span><span>{date}</span></p>'
    return f"<header>{eyebrow}{''.join(said)}</header>\n"


# ----- the optimizers, each at its best learning rate -----


def optimizers(found: Mapping[str, Any], marked: Marked) -> str:
    """Return a card for each optimizer with the figures of its best learning rate."""
    cards = []
    for one in found["best"]:
        i = next(i for i, row in enumerate(found["settings"]) if (row["optim"], row["lr"]) == (one["optim"], one["lr"]))
        cards.append(_card(found, marked, i))
    if not cards:
        return ""
    at = "each at its best learning rate" if len(found["plan"]["lrs"]) > 1 else "at the learning rate that was tried"
    return (
        f'<section id="optimizers"><h2>The optimizers, {at}</h2><div class="cards">{"".join(cards)}</div></section>\n'
    )


def _card(found: Mapping[str, Any], marked: Marked, i: int) -> str:
    row, path = found["settings"][i], f"settings.{i}"
    reached = marked(f"{path}.steps_to_reference", steps, "not reached")
    if row["reached"] and row["reached"] < row["targets"]:
        reached += f" <small>({marked(f'{path}.reached')} of {marked(f'{path}.targets')} seeds)</small>"
    time = marked.mean(f"{path}.step_ms", ms)
    rows = [
        ("learning rate", marked(f"{path}.lr", lr_text)),
        (f"best {loss_name(found)}", marked.mean(f"{path}.best", number)),
        (f"steps to the final loss of {escape(found['reference'])}", reached),
        (f"ms a step{_shared(found)}", time),
        ("peak memory", marked(f"{path}.peak_bytes", table.memory)),
        ("spikes", marked(f"{path}.spikes", str, "too few logs")),
    ]
    list_ = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows)
    final = marked.mean(f"{path}.final", number)
    return (
        f'<article class="card c{color(found, row["optim"])}"><h3>{key(found, row["optim"])}{escape(row["optim"])}</h3>'
        f'<p class="big">{final}</p><p class="under">final {loss_name(found)}</p><dl>{list_}</dl></article>'
    )


def _shared(found: Mapping[str, Any]) -> str:
    return " (runs shared the machine)" if found["shared"] else ""


# ----- differences -----


def differences(found: Mapping[str, Any], marked: Marked) -> str:
    """Return the paired differences as dots with their intervals, for the final and the best loss."""
    if not any(row["final"]["n"] for row in found["differences"]):
        return ""
    scale, out = _scale(found), []
    for name in ("final", "best"):
        optims = [optim for optim in found["plan"]["optims"] if optim != found["reference"]]
        groups = [_group(found, marked, optim, name, scale) for optim in optims]
        out.append(f"<h3>{name.capitalize()} {loss_name(found)}</h3>{''.join(groups)}")
    said = f"The loss less that of {escape(found['reference'])}, by seed. Left of the line is lower, which is better. "
    if found["plan"]["seeds"] == 1:
        said += "One seed has no interval."
    else:
        said += f"A bar is the {percent(found['confidence'])} interval of the mean, a small mark is a seed."
    if any(row["chosen_from"] > 1 for row in found["differences"]):
        said += " The verdict compares each optimizer at its best learning rate, with a wider interval."
    shown = f"{''.join(out)}{_times(found, marked)}"
    return f'<section id="differences"><h2>Differences</h2><p class="muted">{text(said)}</p>{shown}</section>\n'


def _scale(found: Mapping[str, Any]) -> float:
    """Return the difference at the end of a track, the same in all of them.

    An interval of two seeds is wide. The scale is that of the differences, and a bar may leave it.
    """
    both = [(row, name) for row in found["differences"] for name in ("final", "best")]
    pairs = [abs(value) for row, name in both for value in _pairs(found, row, name)]
    means = [row[name] for row, name in both if row[name]["mean"] is not None]
    ends = [abs(one["mean"]) + (one["half"] or 0) for one in means]
    return 1.08 * max([*pairs, min(max(ends, default=0), 4 * max(pairs, default=0)), 1e-12])


def _group(found: Mapping[str, Any], marked: Marked, optim: str, name: str, scale: float) -> str:
    rows = [(i, row) for i, row in enumerate(found["differences"]) if row["optim"] == optim and row[name]["n"]]
    shade = color(found, optim)
    lines = [_difference(marked, i, row, name, _pairs(found, row, name), scale, shade) for i, row in rows]
    return f'<div class="forest"><p class="who">{key(found, optim)}{escape(optim)}</p>{"".join(lines)}</div>'


def _pairs(found: Mapping[str, Any], row: Mapping[str, Any], name: str) -> list[float]:
    """Return the differences of single seeds."""
    by_setting: list[dict[int, float]] = []
    for optim, lr in ((row["optim"], row["lr"]), (found["reference"], row["reference_lr"])):
        runs = [run for run in found["runs"] if (run["optim"], run["lr"]) == (optim, lr) and run.get(name) is not None]
        by_setting.append({run["seed"]: run[name] for run in runs})
    ours, theirs = by_setting
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def _difference(
    marked: Marked, i: int, row: Mapping[str, Any], name: str, pairs: list[float], scale: float, shade: int
) -> str:
    path = f"differences.{i}.{name}"

    def place(value: float) -> float:
        return max(0.0, min(100.0, 50 + 50 * value / scale))

    mean, half = row[name]["mean"], row[name]["half"]
    marks = "".join(f'<i class="seed" style="left:{place(value):.2f}%"></i>' for value in pairs)
    if mean is not None and half is not None:
        low, high = place(mean - half), place(mean + half)
        cut = f"{' cut-left' if mean - half < -scale else ''}{' cut-right' if mean + half > scale else ''}"
        marks = f'<i class="bar{cut}" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>{marks}'
    if mean is not None:
        marks += f'<i class="mean" style="left:{place(mean):.2f}%"></i>'
    label = f"learning rate {marked(f'differences.{i}.lr', lr_text)}"
    if row["is_verdict"] and (row["chosen_from"] == 1 or half is None):
        return ""  # the same as the row of its learning rate
    if row["is_verdict"]:
        at = marked(f"differences.{i}.lr", lr_text)
        if row["lr"] != row["reference_lr"]:
            at += f" and {marked(f'differences.{i}.reference_lr', lr_text)}"
        label = f"verdict, at {at} ({percent(row['confidence'])})"
    value = marked.mean(path, number) if mean is not None else "diverged"
    sign = "+" if mean is not None and mean > 0 else ""
    count = f"<small>{marked(f'{path}.n')} pair{'s' if row[name]['n'] != 1 else ''}</small>"
    strong = " strong" if row["is_verdict"] else ""
    return (
        f'<div class="row{strong}"><span class="name">{label}</span><span class="track c{shade}">{marks}</span>'
        f'<span class="value">{sign}{value} {count}</span></div>'
    )


def _times(found: Mapping[str, Any], marked: Marked) -> str:
    """Return what can be said of the time of a step, which is nothing if runs shared the machine."""
    if found["shared"]:
        return (
            '<h3>Time of a step</h3><p id="times">Runs shared the machine (--jobs), so their times say nothing '
            "about the optimizers. Use --jobs 1 to compare times. The memory is each process's own.</p>"
        )
    said = []
    for i, row in enumerate(found["differences"]):
        one = row["step_ms"]
        if not row["is_verdict"] or one is None or one["mean"] is None:
            continue
        path = f"differences.{i}.step_ms"
        if one["half"] is None:
            kind = "one seed gives no interval"
        elif abs(one["mean"]) <= one["half"]:
            kind = "these runs do not tell them apart"
        else:
            kind = "slower" if one["mean"] > 0 else "faster"
        value = ("+" if one["mean"] > 0 else "") + marked.mean(path, ms)
        said.append(
            f"<li>A step of {escape(row['optim'])} less one of {escape(found['reference'])}: {value} ms; {kind}.</li>"
        )
    if not said:
        return ""
    about = (
        "The median time from the end of a step to the end of the next, evaluations and checkpoints left out, by seed."
    )
    return f'<h3>Time of a step</h3><p class="muted">{about}</p><ul id="times">{"".join(said)}</ul>'
