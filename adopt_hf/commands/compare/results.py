"""The results of a comparison: what results.json holds, and the page and the tables show.

The rules are those of docs/compare.md, which were written before the first result.
"""

import datetime
import functools
import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from adopt_hf.commands.compare import outcome, verdict
from adopt_hf.commands.compare.outcome import HELD_OUT, TRAINING
from adopt_hf.commands.compare.paired import CONFIDENCE, Difference, difference, half_width
from adopt_hf.commands.compare.plan import Plan, Run

FORMAT = 1
VALLEY = 0.02  # a learning rate is in the valley if its loss is at most this share above the best

Done = dict[str, Any]
BySeed = dict[int, float]


def results(plan: Plan, done: Mapping[Run, Done], jobs: int) -> dict[str, Any]:
    """Return everything as JSON: numbers, lists and texts; None where there is no number."""
    finished = {run: one for run, one in done.items() if one["status"] == "finished"}
    metric = HELD_OUT if finished and all(one["curves"][HELD_OUT] for one in finished.values()) else TRAINING
    rows = {run: _row(run, done.get(run), metric) for run in plan.runs()}
    settings = {(optim, lr): _setting(optim, lr, rows) for optim in plan.optims for lr in plan.lrs}
    best = {optim: _best(plan, optim, settings) for optim in plan.optims}
    _count_steps(plan, rows, settings, best)
    is_shared = any(one["shared"] for one in finished.values())
    found = {
        "format": FORMAT,
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": dict(_machine()),
        "plan": {
            "command": list(plan.command),
            "optims": list(plan.optims),
            "lrs": list(plan.lrs),
            "seeds": plan.seeds,
            "sweep": plan.is_sweep,
        },
        "jobs": jobs,
        "metric": metric,
        "reference": plan.reference,
        "confidence": CONFIDENCE,
        "runs_planned": len(rows),
        "runs_finished": len(finished),
        "runs_failed": sum(one["status"] == "failed" for one in done.values()),
        "shared": is_shared,
        "settings": list(settings.values()),
        "best": [one for one in best.values() if one is not None],
        "differences": _differences(plan, rows, settings, is_shared),
        "runs": list(rows.values()),
    }
    found["verdicts"], found["conditions"] = verdict.verdicts(found), verdict.conditions(found)
    return found


@functools.cache
def _machine() -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        **versions,
    }


# ----- one run -----


def _row(run: Run, done: Done | None, metric: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": run.name, "optim": run.optim, "lr": run.lr, "seed": run.seed, "status": "waiting"}
    if done is None:
        return row
    row |= {key: done[key] for key in ("status", "exit_code", "seconds", "shared")}
    if done["status"] == "failed":
        return row | {"last_lines": done["last_lines"], "reason": outcome.reason(done["last_lines"])}
    points = outcome.judged(done["curves"], metric)
    finite = [(loss, step) for step, loss in points if loss is not None]
    final = points[-1][1] if points else None
    best, best_step = min(finite, default=(None, None))
    row |= {key: done[key] for key in ("steps", "step_ms", "peak_bytes", "peak_of", "processes", "spikes", "curves")}
    return row | {
        "final": final,
        "best": best,
        "best_step": best_step,
        "diverged": final is None,
        "steps_to_reference": None,
    }


def _by_seed(rows: Mapping[Run, dict[str, Any]], optim: str, lr: float, name: str) -> BySeed:
    """Return a number of the finished runs of a setting, NaN for a loss that is not finite. Others are left out."""
    found = {}
    for run, row in rows.items():
        if (run.optim, run.lr) == (optim, lr) and row["status"] == "finished":
            value = row[name]
            if value is not None:
                found[run.seed] = float(value)
            elif name in ("final", "best"):
                found[run.seed] = math.nan
    return found


# ----- a setting: an optimizer and a learning rate -----


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean and the half-width of its interval; None where there is none."""
    if not values or not all(map(math.isfinite, values)):
        return {"mean": None, "half": None, "n": len(values)}
    half = half_width(values)
    return {"mean": statistics.fmean(values), "half": half if math.isfinite(half) else None, "n": len(values)}


def _setting(optim: str, lr: float, rows: Mapping[Run, dict[str, Any]]) -> dict[str, Any]:
    runs = [row for run, row in rows.items() if (run.optim, run.lr) == (optim, lr)]
    numbers = {name: list(_by_seed(rows, optim, lr, name).values()) for name in ("final", "best", "step_ms", "spikes")}
    peaks = [row["peak_bytes"] for row in runs if row.get("peak_bytes")]
    return {
        "optim": optim,
        "lr": lr,
        "planned": len(runs),
        "finished": sum(row["status"] == "finished" for row in runs),
        "failed": sum(row["status"] == "failed" for row in runs),
        "diverged": sum(bool(row.get("diverged")) for row in runs),
        "final": _mean(numbers["final"]),
        "best": _mean(numbers["best"]),
        "step_ms": _mean(numbers["step_ms"]),
        "peak_bytes": max(peaks, default=None),
        "spikes": int(sum(numbers["spikes"])) if numbers["spikes"] else None,
    }


# ----- the learning rates -----


def _best(plan: Plan, optim: str, settings: Mapping[tuple[str, float], dict[str, Any]]) -> dict[str, Any] | None:
    """Return the best learning rate of an optimizer: the lowest mean of the final loss, and the valley around it.

    A learning rate at which a run has failed or diverged is only taken if there is no other.
    """
    of = [settings[optim, lr] for lr in plan.lrs]
    whole = [one for one in of if one["final"]["mean"] is not None and one["finished"] == one["planned"]]
    found = min(whole or [one for one in of if one["final"]["mean"] is not None],
                key=lambda one: one["final"]["mean"], default=None)  # fmt: skip
    if found is None:
        return None
    at, means = of.index(found), [one["final"]["mean"] for one in of]
    level = means[at] + VALLEY * abs(means[at])
    low, open_below = _edge(plan.lrs, means, at, -1, level)
    high, open_above = _edge(plan.lrs, means, at, +1, level)
    return {
        "optim": optim,
        "lr": found["lr"],
        "final": found["final"],
        "tried": len(plan.lrs),
        "at_edge": len(plan.lrs) > 1 and at in (0, len(plan.lrs) - 1),
        "edge": {0: "lowest", len(plan.lrs) - 1: "highest"}.get(at) if len(plan.lrs) > 1 else None,
        "valley": {
            "low": low,
            "high": high,
            "factor": high / low,
            "open_below": open_below,
            "open_above": open_above,
            "share": VALLEY,
        },
    }


def _edge(lrs: Sequence[float], means: Sequence[float | None], at: int, step: int, level: float) -> tuple[float, bool]:
    """Return the learning rate at which the loss passes `level`, and whether the valley goes on beyond the last one.

    Between two learning rates the loss is taken for a straight line over their logarithms. Next to one that diverged
    the valley ends at the last that did not.
    """
    here = at
    while 0 <= here + step < len(lrs):
        there = here + step
        loss, inside = means[there], means[here]
        assert inside is not None
        if loss is None:
            return lrs[here], False
        if loss > level:
            share = (level - inside) / (loss - inside)
            return math.exp(math.log(lrs[here]) + share * (math.log(lrs[there]) - math.log(lrs[here]))), False
        here = there
    return lrs[here], True


# ----- steps to the reference's final loss -----


def _count_steps(
    plan: Plan,
    rows: Mapping[Run, dict[str, Any]],
    settings: Mapping[tuple[str, float], dict[str, Any]],
    best: Mapping[str, dict[str, Any] | None],
) -> None:
    """Add the first logged step at which each run is at the reference's final loss, of the same seed, or below."""
    found = best[plan.reference]
    targets = _by_seed(rows, plan.reference, found["lr"], "final") if found else {}
    metric = HELD_OUT if all(row["curves"][HELD_OUT] for row in rows.values() if "curves" in row) else TRAINING
    for run, row in rows.items():
        target = targets.get(run.seed, math.nan)
        if row["status"] == "finished" and math.isfinite(target):
            points = outcome.judged(row["curves"], metric)
            row["steps_to_reference"] = next((s for s, loss in points if loss is not None and loss <= target), None)
    for (optim, lr), setting in settings.items():
        steps = list(_by_seed(rows, optim, lr, "steps_to_reference").values())
        setting["steps_to_reference"] = statistics.fmean(steps) if steps else None
        setting["reached"] = len(steps)
        setting["targets"] = sum(map(math.isfinite, targets.values()))


# ----- differences -----


def _as_json(found: Difference) -> dict[str, Any]:
    return {
        "mean": found.mean if found.n and math.isfinite(found.mean) else None,
        "half": found.half if math.isfinite(found.half) else None,
        "n": found.n,
    }


def _differences(
    plan: Plan,
    rows: Mapping[Run, dict[str, Any]],
    settings: Mapping[tuple[str, float], dict[str, Any]],
    is_shared: bool,
) -> list[dict[str, Any]]:
    """Return each optimizer less the reference by seed: at each learning rate, and each at its best."""
    best = {optim: _best(plan, optim, settings) for optim in plan.optims}
    found = []
    for optim in plan.optims:
        if optim == plan.reference:
            continue
        pairs: list[tuple[float, float, bool]] = [(lr, lr, False) for lr in plan.lrs]
        ours, theirs = best[optim], best[plan.reference]
        if ours is not None and theirs is not None:
            pairs.append((ours["lr"], theirs["lr"], True))
        for lr, reference_lr, is_verdict in pairs:
            chosen_from = (len(plan.optims) - 1) * len(plan.lrs) ** 2 if is_verdict else 1
            confidence = 1 - (1 - CONFIDENCE) / chosen_from
            row: dict[str, Any] = {
                "optim": optim,
                "lr": lr,
                "reference_lr": reference_lr,
                "is_verdict": is_verdict,
                "chosen_from": chosen_from,
                "confidence": confidence,
            }
            for name in ("final", "best", "step_ms"):
                a, b = _by_seed(rows, optim, lr, name), _by_seed(rows, plan.reference, reference_lr, name)
                compared = name != "step_ms" or not is_shared
                row[name] = _as_json(difference(a, b, confidence)) if compared else None
            found.append(row)
    return found
