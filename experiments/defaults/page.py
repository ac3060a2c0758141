"""Write docs/defaults.md and its plot, from the rows of experiments/defaults/protocol.py only."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from matplotlib.figure import Figure

from experiments.defaults import decisions
from experiments.defaults.decisions import Comparison, Found, Losses, Score
from experiments.harness import markers
from experiments.harness.paired import Difference, difference, half_width
from experiments.harness.runs import InputError
from experiments.paper import evidence

PAGE = Path(__file__).parents[2] / "docs" / "defaults.md"
FIRST_SCREEN = ("demo", "gpt2_500", "llama", "lora")  # the tasks of the short table
BLOCKS = ("defaults rule", "defaults results", "defaults short", "defaults clip")  # what the page must have
NOT_RUN = "not run yet"


def texts(protocol: ModuleType, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The produced passages by their keys (experiments/harness/markers.py).

    Args:
        protocol: experiments.defaults.protocol, or a module with its tables.
    """
    found = gather(protocol, rows)
    return {
        "defaults rule": decisions.RULE,
        "defaults results": text(protocol, rows),
        "defaults short": "\n".join(short(protocol, found)),
        "where ADOPTW is behind AdamW": behind(protocol, found),
        "defaults clip": "\n".join(clip(protocol, found)),
    }


def write(protocol: ModuleType, rows: Sequence[Mapping[str, Any]], page: Path = PAGE) -> None:
    """Write the produced passages of `page`, and its plot.

    Raises:
        InputError: There is no page, or it lacks a marker.
    """
    try:
        whole = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{page}: {error.strerror}") from None
    made = texts(protocol, rows)
    for key in BLOCKS:
        try:
            whole = markers.inserted(whole, key, made[key])
        except ValueError as error:
            raise InputError(f"{page}: {error}") from None
    page.write_text(markers.filled(whole, made), encoding="utf-8")
    plot(protocol, rows, page.with_suffix("") / "differences.png")


def gather(protocol: ModuleType, rows: Iterable[Mapping[str, Any]]) -> Found:
    """The losses of the protocol's tasks."""
    tasks = protocol.TASKS.values()
    return Found(rows, {task.name: task.seeds for task in tasks}, {task.name: task.rates for task in tasks})


def text(protocol: ModuleType, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what the rule decides, and a table for each task."""
    found = gather(protocol, rows)
    lines = verdicts(protocol, found)
    for name in protocol.TASKS:
        lines += ["", *task_table(protocol, found, name)]
    if rows:
        lines += ["", evidence.measured(protocol, rows)]
    return "\n".join(lines)


def scores(protocol: ModuleType, found: Found) -> list[Score]:
    """The exponents against AdamW, largest first."""
    return [decisions.score(found, protocol.TASKS, k, protocol.adoptw(k), protocol.ADAMWS) for k in protocol.EXPONENTS]


def verdicts(protocol: ModuleType, found: Found) -> list[str]:
    """Return the decisions of the rule, and the decisions that are open."""
    scored = scores(protocol, found)
    chosen = decisions.choose(scored)
    lines = []
    for k in dict.fromkeys((1.0, chosen)):
        comparisons = decisions.warmup(found, protocol.TASKS, protocol.adoptw(k), "adopt")
        run = [one for one in comparisons if one.outcome != NOT_RUN]
        worse = [f"{protocol.TASKS[one.task].title} ({one.basis})" for one in run if one.outcome == "worse"]
        better = sum(one.outcome == "better" for one in run)
        verdict = {True: "it stays the default", False: "it does not stay the default", None: "not decided yet"}
        lines.append(
            f"- **The warm-up with k = {k:g} against the paper's rule: {verdict[decisions.stays(comparisons)]}.** Of "
            f"{len(comparisons)} comparisons {len(run)} are run: better in {better}, worse in {len(worse)}"
            + (f" ({', '.join(worse)})" if worse else "")
            + f", level in {len(run) - better - len(worse)}."
            + "".join(dict.fromkeys(_repeated(protocol, one) for one in comparisons if one.again))
        )
    if any(one.open for one in scored):
        missing = {task for one in scored for task in one.missing}
        lines.append(
            f"- **The exponent: not decided yet**, so it stays 1. {len(protocol.TASKS) - len(missing)} of "
            f"{len(protocol.TASKS)} tasks are run for all of them; a k that has lost a task is out for good."
        )
    else:
        none = "" if any(one.admissible for one in scored) else " No k is admissible."
        lines.append(f"- **The exponent: k = {chosen:g}.**{none}")
    lines += [
        "",
        "| ADOPTW against AdamW, at AdamW's rate | wins | level | loses | not run yet | standardised sum |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in scored:
        cells = [_titles(protocol, names) for names in (one.wins, one.level, one.losses)]
        cells.append(f"{len(one.missing)} of {len(protocol.TASKS)}")
        total = f"{one.sum:+.2f}" if len(one.missing) < len(protocol.TASKS) else "-"
        lines.append(f"| k = {one.exponent:g} | " + " | ".join(cells) + f" | {total} |")
    return [*lines, "", *once(protocol, found)]


def _repeated(protocol: ModuleType, one: Comparison) -> str:
    """Both differences of a comparison that was run again."""
    assert one.again is not None
    first, again = (f"{found.mean:+.4f} ± {found.half:.4f}" for found in (one.difference, one.again))
    return f" {protocol.TASKS[one.task].title} went against it, {first}; with other seeds it is {again}."


def once(protocol: ModuleType, found: Found) -> list[str]:
    """What is tried once, against ADOPTW with the same k."""
    tasks = protocol.ONCE_TASKS
    lines = [
        "| tried once, less ADOPTW's with the same k | "
        + " | ".join(protocol.TASKS[task].title for task in tasks)
        + " | adopted |",
        "| --- |" + " --- |" * (len(tasks) + 1),
    ]
    verdict = {True: "yes", False: "no", None: "not decided yet"}
    for name in protocol.ONCE:
        against = protocol.adoptw(protocol.VARIANTS[name].warmup)
        if protocol.VARIANTS[name].optimizer == "AdamW":
            continue
        outcomes = [decisions.outcome(*_pair(found, task, name, against), found.seeds[task]) for task in tasks]
        cells = [_than(found, task, name, against) for task in tasks]
        lines.append(
            f"| {title(protocol, name)} | " + " | ".join([*cells, verdict[decisions.adopted(outcomes)]]) + " |"
        )
    return lines


def clip(protocol: ModuleType, found: Found) -> list[str]:
    """ADOPTW with a wider clip against ADOPTW and against AdamW, on all tasks."""
    name, ours = protocol.CLIP[0], protocol.adoptw(1.0)
    lines = [
        "| held-out loss at AdamW's rate | `clip_exp=0.5`, less `0.25` | `clip_exp=0.5`, less AdamW's |",
        "| --- | --- | --- |",
    ]
    for task in protocol.TASKS:
        better = found.better_of(task, protocol.ADAMWS)
        cells = [_than(found, task, name, ours), _against(found, task, name, better)]
        lines.append(f"| {protocol.TASKS[task].title} | " + " | ".join(cells) + " |")
    return lines


def short(protocol: ModuleType, found: Found) -> list[str]:
    """The table of the first screen: AdamW, ADOPT and ADOPTW on four tasks, at AdamW's rate."""
    chosen = protocol.adoptw(decisions.choose(scores(protocol, found)))
    names = {"`ADOPT`": "adopt", '`ADOPTW`, `optim="adopt"`': chosen}
    lines = [
        "| held-out loss | seeds | AdamW | " + " | ".join(f"{name}, less AdamW's" for name in names) + " |",
        "| --- |" + " --- |" * (2 + len(names)),
    ]
    for task in FIRST_SCREEN:
        better = found.better_of(task, protocol.ADAMWS)
        mean = NOT_RUN if better is None else _mean(found.at(task, better))
        cells = [_against(found, task, name, better) for name in names.values()]
        lines.append(f"| {protocol.TASKS[task].title} | {found.seeds[task]} | {mean} | " + " | ".join(cells) + " |")
    return lines


def behind(protocol: ModuleType, found: Found) -> str:
    """Where ADOPTW ends behind the better AdamW at AdamW's rate, by the intervals, and by how much."""
    name = protocol.adoptw(decisions.choose(scores(protocol, found)))
    pairs = {
        task.title: difference(found.at(task.name, name), found.at(task.name, better))
        for task in protocol.TASKS.values()
        if (better := found.better_of(task.name, protocol.ADAMWS)) and len(found.at(task.name, name)) == task.seeds
    }
    worse = [f"{title} {one.mean:+.3f} ± {one.half:.3f}" for title, one in pairs.items() if one.above]
    ahead = sum(one.below for one in pairs.values())
    return (
        f"of {len(pairs)} small tasks it is ahead of the better AdamW on {ahead}, and behind on {len(worse)}"
        + f" ({', '.join(worse)})" * bool(worse)
    )


def task_table(protocol: ModuleType, found: Found, name: str) -> list[str]:
    """All variants that have a row on this task."""
    task = protocol.TASKS[name]
    better = found.better_of(name, protocol.ADAMWS)
    own = {adamw: found.own_best(name, adamw) for adamw in protocol.ADAMWS if found.best_rate(name, adamw) is not None}
    better_own = min(own.values(), key=lambda losses: statistics.fmean(losses.values())) if len(own) == 2 else {}
    rates = ", ".join(f"{lr:g}" for lr in sorted(task.rates))
    about = f"{task.about[0].upper()}{task.about[1:]}; {task.seeds} seeds, rates {rates}, AdamW's {task.rates[0]:g}."
    if pilot := found.pilot(name):
        about += f" The pilot: {', '.join(f'{loss:.3f} at {lr:g}' for lr, loss in pilot.items())}."
    lines = [f"### {task.title}", "", about, ""]
    if not any(loss for variant in protocol.VARIANTS for loss in found.grid(name, variant).values()):
        return [*lines, f"{NOT_RUN.capitalize()}."]
    lines += [
        "| held-out loss | at AdamW's rate | less the better AdamW's | own best rate | there | less AdamW's own best |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant in protocol.VARIANTS:
        if not any(found.grid(name, variant).values()) and variant not in protocol.DECIDING:
            continue
        here, best = found.at(name, variant), found.best_rate(name, variant)
        cells = [_mean(here) if len(here) == task.seeds else _partly(here, task.seeds)]
        cells.append("-" if variant == better else _against(found, name, variant, better))
        if best is None:  # only what decides on the warm-up is run at all rates
            cells += [NOT_RUN if variant in protocol.WARM_UP else "-"] * 3
        else:
            losses = found.own_best(name, variant)
            cells += [f"{best[0]:g}{' (edge)' if best[1] else ''}", _mean(losses)]
            cells.append("-" if losses == better_own else _text(losses, better_own) if better_own else NOT_RUN)
        lines.append(f"| {title(protocol, variant)} | " + " | ".join(cells) + " |")
    return lines


def title(protocol: ModuleType, name: str) -> str:
    """A variant in words."""
    variant = protocol.VARIANTS[name]
    if variant.optimizer == "AdamW":
        words = [f"AdamW, beta2 {variant.beta2:g}"]
    else:
        words = [f"ADOPTW, k = {variant.warmup:g}" if variant.warmup else "ADOPT, the paper's rule"]
        if variant.beta2 != "task":
            words.append("beta2 1 - 1/steps" if variant.beta2 == "steps" else f"beta2 {variant.beta2:g}")
        if variant.clip_exp != 0.25:
            words.append("atan2" if variant.clip_exp == "atan2" else f"clip_exp {variant.clip_exp or 'None'}")
    if not variant.lr_warmup:
        words.append("no warm-up of the learning rate")
    return ", ".join(words)


def plot(protocol: ModuleType, rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw for each task the differences of ADOPT and of each exponent to the better AdamW, with their intervals."""
    found, names = gather(protocol, rows), ("adopt", *(protocol.adoptw(k) for k in protocol.EXPONENTS))
    labels = ["ADOPT", *(f"k = {k:g}" for k in protocol.EXPONENTS)]
    columns = 4
    high = math.ceil(len(protocol.TASKS) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.1 * high), layout="constrained")
    panels = figure.subplots(high, columns, squeeze=False).flatten()
    for axes, task in zip(panels, protocol.TASKS, strict=False):
        better = found.better_of(task, protocol.ADAMWS)
        axes.axvline(0, color="#9aa7b5", linewidth=1)
        axes.set_title(protocol.TASKS[task].title, fontsize=10)
        axes.set_yticks(range(len(names)), labels)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        drawn = False
        for place, name in enumerate(names):
            one = difference(found.at(task, name), found.at(task, better)) if better else Difference(0, math.inf, 0)
            if one.n == found.seeds[task] and math.isfinite(one.mean):
                colour = "#2c5f8a" if one.below else "#c0392b" if one.above else "#5c6670"
                axes.errorbar(one.mean, place, xerr=one.half, fmt="o", color=colour, markersize=4, capsize=2)
                drawn = True
        if not drawn:
            axes.set_xticks([])
            axes.text(0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center", color="#5c6670")
    for axes in panels[len(protocol.TASKS) :]:
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _titles(protocol: ModuleType, names: Sequence[str]) -> str:
    """How many tasks, and which."""
    return f"{len(names)}: {'; '.join(protocol.TASKS[name].title for name in names)}" if names else "0"


def _mean(losses: Losses) -> str:
    diverged = sum(map(math.isinf, losses.values()))
    if diverged:
        return f"{diverged} of {len(losses)} diverged"
    values = list(losses.values())
    return f"{statistics.fmean(values):.3f} ± {half_width(values):.3f}"


def _partly(losses: Losses, seeds: int) -> str:
    return f"{NOT_RUN} ({len(losses)} of {seeds} seeds)" if losses else NOT_RUN


def _against(found: Found, task: str, variant: str, better: str | None) -> str:
    return NOT_RUN if better is None else _than(found, task, variant, better)


def _pair(found: Found, task: str, ours: str, theirs: str) -> tuple[Losses, Losses]:
    return found.at(task, ours), found.at(task, theirs)


def _than(found: Found, task: str, ours: str, theirs: str) -> str:
    """The difference of two variants at AdamW's rate."""
    pair = _pair(found, task, ours, theirs)
    return _text(*pair) if all(len(losses) == found.seeds[task] for losses in pair) else NOT_RUN


def _text(ours: Losses, theirs: Losses) -> str:
    if any(map(math.isinf, [*ours.values(), *theirs.values()])):
        return "diverged"
    one = difference(ours, theirs)
    words = f"{one.mean:+.3f} ± {one.half:.3f}"
    return f"**{words}**" if one.below or one.above else words
