"""An environment for each framework, because their pins clash. It lies over the one of the tests, which has torch."""

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.harness.machine import ROOT

FOLDER = ROOT / ".venv" / "frameworks"
PIP = (
    sys.executable,
    "-m",
    "pip",
    "-qqq",
    "--disable-pip-version-check",
)  # errors: the resolver's, about what is left out
# Commands that frameworks start by name. The ones on the PATH belong to the Python of the tests.
LAUNCHERS = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}


class Environment(NamedTuple):
    """The packages of a framework.

    Attributes:
        package: The framework, with its version. It is installed even if the environment below has it.
        needs: What else is installed, with dependencies.
        without_dependencies: Packages that are installed with `--no-deps`, since these are large and the job does not
            use them.
        empty: Modules that the framework imports and the job does not use, and for which there is no build.
    """

    package: str
    needs: tuple[str, ...] = ()
    without_dependencies: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


def install(name: str, wanted: Environment, folder: Path = FOLDER) -> Path:
    """Make the environment unless it is there as wanted, and install this checkout's wheel. Return the Python's path.

    Raises:
        subprocess.CalledProcessError: If pip fails.
    """
    home = folder / name
    python, stamp = home / "bin" / "python", home / "installed.txt"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == repr(wanted)):
        _make(home, python, wanted)
        stamp.write_text(repr(wanted), encoding="utf-8")
    _pip(python, "--no-deps", "--no-build-isolation", "--force-reinstall", str(ROOT))
    return python


def _make(home: Path, python: Path, wanted: Environment) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(home)], check=True)
    site = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (site / "of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    constraints = home / "constraints.txt"
    constraints.write_text(_line_of_torch(), encoding="utf-8")
    for module in wanted.empty:
        (site / f"{module}.py").write_text(f'"""An empty module in place of {module}."""\n', encoding="utf-8")
    _pip(python, "--no-deps", "--ignore-installed", wanted.package, *wanted.without_dependencies)
    if wanted.needs:
        _pip(python, "--constraint", str(constraints), *wanted.needs)
    for command, module in LAUNCHERS.items():
        script = home / "bin" / command
        script.write_text(f'#!/bin/sh\nexec "{python}" -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([*PIP, "--python", str(python), "install", "--no-compile", *arguments], check=True)


def _line_of_torch() -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("torch=="))


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions that the environment has of these packages; one that it lacks is left out."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({d.metadata['Name']: d.version for d in map(m.distribution, sys.argv[1:])}))"
    )
    done = subprocess.run([str(python), "-c", code, *packages], check=True, capture_output=True, text=True)
    found: dict[str, str] = __import__("json").loads(done.stdout)
    return found
