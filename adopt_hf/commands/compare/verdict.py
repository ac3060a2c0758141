"""The verdict: one plain sentence for each optimizer, which says no more than its interval allows."""

from collections.abc import Mapping
from typing import Any

from adopt_hf.commands.compare.outcome import HELD_OUT
from adopt_hf.commands.compare.plan import lr_text

LOSS = {True: "held-out loss", False: "training loss"}


def loss_name(found: Mapping[str, Any]) -> str:
    """Return what the loss is called: held-out if every finished run has evaluated."""
    return LOSS[found["metric"] == HELD_OUT]


def verdicts(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a verdict for each optimizer but the reference, or one that says why there is none."""
    rows = {row["optim"]: row for row in found["differences"] if row["is_verdict"]}
    optims = [optim for optim in found["plan"]["optims"] if optim != found["reference"]]
    return [_verdict(found, optim, rows.get(optim)) for optim in optims or [found["reference"]]]


def _verdict(found: Mapping[str, Any], optim: str, row: Mapping[str, Any] | None) -> dict[str, Any]:
    if row is None:
        return {"optim": optim, "kind": "none", "sentence": _why_none(found, optim), "interval": []}
    return {
        "optim": optim,
        "kind": _kind(row),
        "sentence": _sentence(found, row),
        "interval": _interval(found, row),
    }


def _kind(row: Mapping[str, Any]) -> str:
    mean, half = row["final"]["mean"], row["final"]["half"]
    if mean is None or half is None:
        return "none"
    return "lower" if mean + half < 0 else "higher" if mean - half > 0 else "open"


def _why_none(found: Mapping[str, Any], optim: str) -> str:
    """Return why an optimizer cannot be compared."""
    if optim == found["reference"]:
        return f"Only {optim} was run, so there is nothing to compare it with."
    for name in (optim, found["reference"]):
        settings = [one for one in found["settings"] if one["optim"] == name]
        if all(one["diverged"] for one in settings):
            return f"{name} diverged at every learning rate that was tried, so {optim} cannot be compared."
    return f"No seed of {optim} and {found['reference']} has finished in both, so they cannot be compared yet."


def number(value: float, beside: float | None = None) -> str:
    """Return a loss or a difference of losses with three decimal places, and with two significant digits at least.

    Args:
        value: The number.
        beside: A number that it stands beside, which has as many places.
    """
    return f"{value:.{max(_places(value), 0 if beside is None else _places(beside))}f}"


def _places(value: float) -> int:
    places = 3
    while value != 0 and abs(value) < 2 * 10 ** (1 - places) and places < 9:
        places += 1
    return places


def _sentence(found: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    ours, theirs, loss = row["optim"], found["reference"], loss_name(found)
    mean, half, pairs = row["final"]["mean"], row["final"]["half"], row["final"]["n"]
    lr, reference_lr = lr_text(row["lr"]), lr_text(row["reference_lr"])
    at = f" at learning rate {lr}" if lr == reference_lr else f", at learning rates {lr} and {reference_lr}"
    if pairs == 0:
        return f"No seed of {ours} and {theirs} has finished in both{at}, so they cannot be compared yet."
    if mean is None:
        return f"A run of {ours} or {theirs} diverged{at}, so their {loss} has no interval."
    if half is None:
        return (
            f"One pair of runs gives no interval: {ours} ended {number(abs(mean))} {'below' if mean < 0 else 'above'} "
            f"{theirs} in {loss}{at}, which another seed may reverse."
        )
    low, high = sorted((abs(mean - half), abs(mean + half)))
    kind = _kind(row)
    if kind == "open":
        return (
            f"These runs do not tell {ours} and {theirs} apart{at}: the difference in {loss} lies between "
            f"{signed(mean - half, mean + half)} and {signed(mean + half, mean - half)}."
        )
    return (
        f"{ours} ends with a {kind} {loss} than {theirs}{at}: by {number(abs(mean), low)}, and by {number(low, mean)} "
        f"to {number(high, low)} within the interval."
    )


def signed(value: float, beside: float | None = None) -> str:
    """Return a difference of losses with its sign."""
    return f"{'+' if value > 0 else ''}{number(value, beside)}"


def _interval(found: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    """Return the sentences on the interval of a verdict."""
    if row["final"]["half"] is None:
        return []
    seeds, confidence = row["final"]["n"], percent(row["confidence"])
    said = [f"The interval is of {seeds} pairs of one seed each, with {confidence} confidence."]
    if row["chosen_from"] > 1:
        said.append(
            f"It is wider than a single one of {percent(found['confidence'])}, because it covers all "
            f"{row['chosen_from']} comparisons that this one was chosen from."
        )
    if _kind(row) == "open":
        said.append("That is no evidence that they are equal. More seeds make the interval narrower.")
    return said


def conditions(found: Mapping[str, Any]) -> list[str]:
    """Return the sentences that belong to all verdicts."""
    said = []
    planned, finished, failed = (found[f"runs_{name}"] for name in ("planned", "finished", "failed"))
    if finished < planned:
        waiting = planned - finished - failed
        left = [f"{failed} failed"] * bool(failed) + [f"{waiting} not finished yet"] * bool(waiting)
        said.append(f"{finished} of {planned} runs are in it ({', '.join(left)}).")
    for one in found["best"]:
        if one["at_edge"]:
            said.append(
                f"The best learning rate of {one['optim']}, {lr_text(one['lr'])}, is the {one['edge']} that was tried, "
                "so a better one may lie beyond it."
            )
    said.append("The result holds for this script, this number of steps and these learning rates.")
    return said


def percent(confidence: float) -> str:
    """Return a confidence as people write it."""
    return f"{100 * confidence:.3g} %" if confidence < 0.995 else f"{100 * confidence:.4g} %"
