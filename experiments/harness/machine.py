"""The conditions of a measurement: date, machine, versions and commit."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def now(*packages: str) -> dict[str, Any]:
    """Return the machine, the versions and the commit of a measurement that begins now.

    Args:
        packages: The distributions whose versions matter; one that is not installed is left out.
    """
    return {
        "date": date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),  # of other work, before the start
        "python": platform.python_version(),
        "commit": commit(),
        "versions": _versions(packages),
    }


def sentence(conditions: Mapping[str, Any]) -> str:
    """Return the conditions as the pages show them."""
    versions = "".join(f", {name} {number}" for name, number in conditions["versions"].items())
    load = conditions.get("load")
    busy = "" if load is None else f", load of the machine before the start {load}"
    return (
        f"Measured on {conditions['date']} on {conditions['processor']}, {conditions['cores']} cores{busy}; "
        f"Python {conditions['python']}{versions}; commit {conditions['commit']}."
    )


def together(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the conditions of several measurements in one: each value that occurs, and the range of the load."""
    loads = [row["load"] for row in found if row.get("load") is not None]
    names = list(dict.fromkeys(name for row in found for name in row["versions"]))
    load = f"{min(loads):g}" if len(set(loads)) == 1 else f"{min(loads):g} to {max(loads):g}" if loads else None
    return {
        **{key: listed(row[key] for row in found) for key in ("date", "processor", "cores", "python", "commit")},
        "load": load,
        "versions": {name: listed(row["versions"].get(name) for row in found) for name in names},
    }


def listed(values: Any) -> str:
    """Return each of the values once."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))


def processor() -> str:
    """Return the name that the system gives the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """Return the commit of the checkout, with "+" if anything except pages and results has changed since."""
    name = _git("describe", "--always", "--exclude=*")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", ":!*.md", ":!*/results/*")
    return f"{name}{'+' if changed else ''}" if name else "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
