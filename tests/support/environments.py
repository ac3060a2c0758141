"""Environments of their own for tests: distributions of this one are linked to, and a wheel or an archive installed."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
WITHOUT_PATH = {"PATH": "", "OMP_NUM_THREADS": "1"}  # no compiler, no make


def needed(name: str, found: dict[str, importlib.metadata.Distribution]) -> dict[str, importlib.metadata.Distribution]:
    """Return the distribution `name` and those that it depends on, extras left out."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key not in found:
        try:
            found[key] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform
            return found
        for requirement in found[key].requires or ():
            if "extra ==" not in requirement:
                needed(re.match(r"[\w.-]+", requirement)[0], found)  # type: ignore[index]
    return found


def environment(folder: Path, *names: str) -> Path:
    """Make an environment with these distributions and what they need. They are linked to, since they are large.

    Returns:
        Its python.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    found: dict[str, importlib.metadata.Distribution] = {}
    for name in names:
        needed(name, found)
    assert not {"adopt-hf", "ziglang"} & found.keys()
    for distribution in found.values():
        for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))).absolute())
    return folder / "bin" / "python"


def install(python: Path, *what: object) -> None:
    """Install a wheel, an archive or a folder, without a PATH and without a download."""
    options = ("--python", python, "install", "--no-deps", "--no-index", "--no-build-isolation")
    done = subprocess.run([*map(str, (*PIP, *options, *what))], env=WITHOUT_PATH, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def library_of(python: Path) -> list[Path]:
    """Return the compiled libraries of the installed package."""
    found = (python.parents[1] / "lib").glob("python*/site-packages/adopt_hf/backends/cpu/kernel-*")
    return sorted(found)


def wheel_of(folder: Path, into: Path, name: str = "") -> Path:
    """Build a wheel of a repository without a download, and return it.

    Args:
        folder: The repository.
        into: An empty folder, for the wheel.
        name: A wheel of hatch_build.py. Default: the one for this machine.
    """
    options = ("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", into, folder)
    variables = {**os.environ, "ADOPT_HF_WHEEL": name}
    subprocess.run([*map(str, (*PIP, *options))], check=True, env=variables)
    (found,) = into.glob("adopt_hf-*.whl")
    return found
