"""The tables of docs/defaults.md: one for each task, and those across tasks."""

import math
import statistics
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from experiments.defaults import decisions
from experiments.defaults.decisions import Found, Losses, Score
from experiments.harness import pages
from experiments.harness.paired import difference, half_width

FIRST_SCREEN = ("demo", "gpt2_500", "llama", "lora")  # the tasks of the short table
NOT_RUN = "not run yet"


def gather(protocol: ModuleType, rows: Iterable[Mapping[str, Any]]) -> Found:
    """Return the losses of the protocol's tasks."""
    tasks = protocol.TASKS.values()
    return Found(rows, {task.name: task.seeds for task in tasks}, {task.name: task.rates for task in tasks})


def scores(protocol: ModuleType, found: Found) -> list[Score]:
    """Compare the exponents with AdamW, the largest first."""
    return [decisions.score(found, protocol.TASKS, k, protocol.adoptw(k), protocol.ADAMWS) for k in protocol.EXPONENTS]


def task_table(protocol: ModuleType, found: Found, name: str) -> list[str]:
    """Return the lines of a task: its title, its description, and a table of all variants that have a row."""
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
    head = ["held-out loss", "at AdamW's rate", "less the better AdamW's", "own best rate", "there"]
    rows = []
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
        rows.append([title(protocol, variant), *cells])
    return [*lines, pages.table([*head, "less AdamW's own best"], rows)]


def title(protocol: ModuleType, name: str) -> str:
    """Return a variant in words."""
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


def once(protocol: ModuleType, found: Found) -> str:
    """Compare what is tried once with ADOPTW of the same k."""
    tasks = protocol.ONCE_TASKS
    head = ["tried once, less ADOPTW's with the same k", *(protocol.TASKS[task].title for task in tasks), "adopted"]
    rows = []
    verdict = {True: "yes", False: "no", None: "not decided yet"}
    for name in protocol.ONCE:
        against = protocol.adoptw(protocol.VARIANTS[name].warmup)
        if protocol.VARIANTS[name].optimizer == "AdamW":
            continue
        outcomes = [decisions.outcome(*_pair(found, task, name, against), found.seeds[task]) for task in tasks]
        cells = [_than(found, task, name, against) for task in tasks]
        rows.append([title(protocol, name), *cells, verdict[decisions.adopted(outcomes)]])
    return pages.table(head, rows)


def clip(protocol: ModuleType, found: Found) -> str:
    """Compare ADOPTW with a wider clip with ADOPTW and with AdamW, on all tasks."""
    name, ours = protocol.CLIP[0], protocol.adoptw(1.0)
    rows = []
    for task in protocol.TASKS:
        better = found.better_of(task, protocol.ADAMWS)
        rows.append([protocol.TASKS[task].title, _than(found, task, name, ours), _against(found, task, name, better)])
    head = ["held-out loss at AdamW's rate", "`clip_exp=0.5`, less `0.25`", "`clip_exp=0.5`, less AdamW's"]
    return pages.table(head, rows)


def short(protocol: ModuleType, found: Found) -> str:
    """Return the table of the first screen: AdamW, ADOPT and ADOPTW on four tasks, at AdamW's rate."""
    chosen = protocol.adoptw(decisions.choose(scores(protocol, found)))
    names = {"`ADOPT`": "adopt", '`ADOPTW`, `optim="adopt"`': chosen}
    rows = []
    for task in FIRST_SCREEN:
        better = found.better_of(task, protocol.ADAMWS)
        mean = NOT_RUN if better is None else _mean(found.at(task, better))
        cells = [_against(found, task, name, better) for name in names.values()]
        rows.append([protocol.TASKS[task].title, found.seeds[task], mean, *cells])
    return pages.table(["held-out loss", "seeds", "AdamW", *(f"{name}, less AdamW's" for name in names)], rows)


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
    """Return the difference of two variants at AdamW's rate."""
    pair = _pair(found, task, ours, theirs)
    return _text(*pair) if all(len(losses) == found.seeds[task] for losses in pair) else NOT_RUN


def _text(ours: Losses, theirs: Losses) -> str:
    if any(map(math.isinf, [*ours.values(), *theirs.values()])):
        return "diverged"
    one = difference(ours, theirs)
    words = f"{one.mean:+.3f} ± {one.half:.3f}"
    return f"**{words}**" if one.below or one.above else words
