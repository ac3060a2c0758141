"""JSON files of numbers: their names, their schema, and errors that name the file."""

import json
from pathlib import Path
from typing import Any

from experiments.step.hardware import slug

SCHEMA = 1
FOLDER = Path(__file__).parents[1] / "results" / "step"

# What every file has, every case of it, and every row; a type is required, of several one.
RESULT: dict[str, Any] = {
    "schema": int,
    "benchmark": str,
    "device": str,
    "date": str,
    "command": str,
    "seed": int,
    "rounds": int,
    "scale": (int, float),
    "environment": dict,
    "cases": list,
}
ENVIRONMENT: dict[str, Any] = {"hardware": str, "cpu": str, "cores": int, "python": str, "versions": dict}
CASE: dict[str, dict[str, Any]] = {
    "step": {
        "device": str,
        "shape": str,
        "dtype": str,
        "threads": int,
        "tensors": int,
        "elements": int,
        "bytes": int,
        "rows": dict,
    },
    "train": {"threads": int, "rows": dict},
}
ROW: dict[str, Any] = {"why": str}
MEASURED: dict[str, dict[str, Any]] = {
    "step": {"ms": dict, "wall_ms": dict, "cpu_ms": dict},
    "train": {"ms": dict, "tokens_per_s": dict},
}


class ResultError(ValueError):
    """A file that does not hold what it should; the message names it."""


def default_path(benchmark: str, device: str, hardware: str, date: str, scale: float) -> Path:
    """Return the default file of a benchmark: a new one, so that no run replaces an earlier one."""
    toy = "" if scale == 1 else f"-scale-{scale:g}"
    name = f"{benchmark}-{device}-{slug(hardware)}-{date}{toy}"
    names = (name, *(f"{name}-{number}" for number in range(2, 10_000)))
    return next(path for path in (FOLDER / f"{name}.json" for name in names) if not path.exists())


def write(path: Path, result: dict[str, Any]) -> None:
    """Check `result` as `read` does, and write it."""
    result = {"schema": SCHEMA, **result}
    _check(path, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Return the result in a file.

    Raises:
        ResultError: If it is not JSON, has another schema, or lacks something.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read: {error}") from error
    _check(path, result)
    return result


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Return every kept result by date, except those of toy scales. A later run is added and replaces none."""
    found = [read(path) | {"file": path.name} for path in sorted(folder.glob("*.json"))]
    return sorted((result for result in found if result["scale"] == 1), key=lambda result: result["date"])


def _check(path: Path, result: Any) -> None:
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        found = result.get("schema") if isinstance(result, dict) else None
        raise ResultError(f"{path}: not a result of schema {SCHEMA} (schema: {found!r})")
    _has(path, "the result", result, RESULT)
    if result["benchmark"] not in CASE:
        raise ResultError(f"{path}: benchmark must be one of {', '.join(CASE)}, got {result['benchmark']!r}")
    _has(path, "environment", result["environment"], ENVIRONMENT)
    for number, case in enumerate(result["cases"]):
        _has(path, f"case {number}", case, CASE[result["benchmark"]])
        for name, row in case["rows"].items():
            where = f"case {number}, {name}"
            _has(path, where, row, ROW)
            if not row["why"]:
                _has(path, where, row, MEASURED[result["benchmark"]])


def _has(path: Path, where: str, found: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(found, dict):
        raise ResultError(f"{path}: {where} must be an object, got {type(found).__name__}")
    for key, kind in wanted.items():
        if not isinstance(found.get(key), kind):
            raise ResultError(f"{path}: {where}: {key!r} is missing or of the wrong type (got {found.get(key)!r})")
