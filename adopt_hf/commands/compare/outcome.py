"""The outcome of one run: what its trainer_state.json, its log and its observer say."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adopt_hf.commands.compare.folder import LOG, OUTPUT, STATE, read_json
from adopt_hf.commands.compare.spikes import WINDOW, spikes

HELD_OUT, TRAINING = "eval_loss", "loss"
LAST_LINES = 12
LINE = 300  # characters
SHARE = 10  # the training loss is averaged over a tenth of the logged losses

Curve = list[tuple[int, float | None]]  # (step, loss); None if the loss is not finite


def trainer_state(folder: Path) -> dict[str, Any] | None:
    """Return the latest trainer_state.json of a run: the script's, of a checkpoint, or the observer's; None without.

    A script that evaluates after the training and saves its state has the longest history.
    """
    paths = [folder / STATE, *folder.glob(f"{OUTPUT}/**/{STATE}")]
    found = [state for state in map(_read_state, paths) if state is not None]
    return max(found, key=lambda state: (state["global_step"], len(state["log_history"])), default=None)


def _read_state(path: Path) -> dict[str, Any] | None:
    state = read_json(path)
    fits = isinstance(state, dict) and isinstance(state.get("log_history"), list) and "global_step" in state
    return state if fits else None


def curve(state: dict[str, Any], name: str) -> Curve:
    """Return the values that were logged under a name, one a step: the last."""
    values = {int(entry["step"]): entry[name] for entry in state["log_history"] if name in entry and "step" in entry}
    return [(step, value if _is_number(value) else None) for step, value in sorted(values.items())]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def smooth(points: Curve) -> Curve:
    """Return the mean of the last tenth of the losses, at each point that has so many before it; of one at least.

    The loss of a single batch says little. A held-out loss needs none of this.
    """
    window = max(1, len(points) // SHARE)
    found: Curve = []
    for end in range(window, len(points) + 1):
        values = [loss for _, loss in points[end - window : end]]
        finite = [loss for loss in values if loss is not None]
        found.append((points[end - 1][0], statistics.fmean(finite) if len(finite) == window else None))
    return found


def judged(curves: dict[str, Curve], metric: str) -> Curve:
    """Return the curve that the final and the best loss are read from."""
    return curves[HELD_OUT] if metric == HELD_OUT else smooth(curves[TRAINING])


def finished(folder: Path) -> dict[str, Any] | None:
    """Return what a run that has ended well has done, or None if it wrote no trainer_state.json or logged no loss."""
    state = trainer_state(folder)
    if state is None:
        return None
    curves = {name: curve(state, name) for name in (HELD_OUT, TRAINING)}
    if not any(curves.values()):
        return None
    losses = [loss for _, loss in curves[TRAINING]]
    seen = observed(folder)
    peaks = [one["peak_bytes"] for one in seen if one.get("peak_bytes")]
    times = [one["step_ms"] for one in seen if one.get("step_ms")]
    return {
        "steps": state["global_step"],
        "curves": curves,
        "step_ms": max(times, default=None),  # the slowest process is the one that the others wait for
        "peak_bytes": max(peaks, default=None),
        "peak_of": next((one["peak_of"] for one in seen if one.get("peak_bytes")), None),
        "processes": len(times),
        "spikes": spikes(losses).count if len(losses) >= WINDOW else None,
    }


def observed(folder: Path) -> list[dict[str, Any]]:
    """Return what the processes of a run have written that train into its output folder."""
    return [one for one in all_observed(folder) if "optim" in one]


def all_observed(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what each process of a run with a training has written."""
    for path in sorted(folder.glob("seen-*.json")):
        found = read_json(path)
        if isinstance(found, dict):
            yield found


def refused(folder: Path) -> tuple[str, str] | None:
    """Return the option that the script did not use, and what it has trained with instead; None if there is none."""
    found = [one["refused"] for one in all_observed(folder) if "refused" in one]
    return (found[0][0], found[0][1]) if found else None


def last_lines(folder: Path) -> list[str]:
    """Return the last lines of what a run has printed. A line of a progress bar is what it was at the end."""
    try:
        with open(folder / LOG, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 2**16))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line.rstrip().rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    return [_printable(line)[:LINE] for line in lines if line.strip()][-LAST_LINES:]


def _printable(line: str) -> str:
    """Return the line without the codes of a terminal."""
    return "".join(c for c in line if c.isprintable() or c == "\t")


def reason(lines: Sequence[str]) -> str:
    """Return the line of an output that says best why a run has failed: the last that names an error."""
    for line in reversed(lines):
        if "Error" in line or "error:" in line:
            return line.strip()
    return lines[-1].strip() if lines else "it printed nothing"


def dumps(outcome: dict[str, Any]) -> str:
    """Return an outcome as strict JSON."""
    return json.dumps(outcome, allow_nan=False)
