"""C source to a loaded library: compiled when first asked for, by the machine's own compiler, and kept in a cache."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

# No contraction to fused multiply-adds and no fast math: a result is the same on every machine, and NaN stays NaN.
FLAGS = (
    *("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-std=c11", "-shared", "-fPIC", "-pthread"),
)
NATIVE = "-march=native"  # not every compiler knows it
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 120  # for one call of the compiler, which takes less than one


def cache_folder() -> Path:
    """Where compiled libraries are kept: ADOPT_HF_CACHE, or adopt_hf in the user's cache folder.

    Raises:
        RuntimeError: there is no home folder to find it in.
    """
    named = os.environ.get("ADOPT_HF_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "adopt_hf"


@cache
def load(source: Path) -> ctypes.CDLL:
    """The library of a C file, from the cache folder if it has been compiled for this machine before.

    Where the folder cannot be written or its files cannot be run, the library is compiled for this process alone.

    Raises:
        RuntimeError: it cannot be compiled or loaded here; the message says why.
    """
    try:
        return _load(source)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{source.name} cannot be compiled and loaded: {error}") from error


def _load(source: Path) -> ctypes.CDLL:
    compiler = _compiler()
    name = f"{source.stem}-{_key(source, compiler)}"
    folder = None
    with suppress(RuntimeError, OSError):  # no home, or nothing can be written there
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        for kept in _intact(folder, name):
            with suppress(OSError):  # mounted without execution
                return ctypes.CDLL(str(kept))
    with _temporary_folder(folder) as own:
        library = Path(own) / f"{name}.so"
        _compile(source, compiler, library)
        if folder is not None:
            with suppress(OSError):
                return ctypes.CDLL(str(_keep(library, folder, name)))
        return ctypes.CDLL(str(library))  # stays loaded when the file is gone


def _compiler() -> list[str]:
    """The command of the C compiler: CC, or the first of `COMPILERS` that is there."""
    if sys.platform == "win32":
        raise RuntimeError("no C compiler is looked for on Windows")
    named = os.environ.get("CC")
    if named:
        command = shlex.split(named)
        found = shutil.which(command[0]) if command else None
        if found is None:
            raise RuntimeError(f"the C compiler that CC names is not there: {named!r}")
        return [found, *command[1:]]
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return [found]
    raise RuntimeError(f"no C compiler is there (looked for {', '.join(COMPILERS)}; CC names another)")


def _key(source: Path, compiler: list[str]) -> str:
    """What the library depends on: its source with its headers, the compiler and its flags, and the processor."""
    program = Path(compiler[0]).resolve()
    stat = program.stat()
    parts = (" ".join((*compiler, *FLAGS)), f"{program} {stat.st_size} {stat.st_mtime_ns}", _processor())
    read = [source, *sorted(source.parent.glob(f"{source.stem}_*.h"))]
    return hashlib.sha256("\0".join(parts).encode() + b"".join(file.read_bytes() for file in read)).hexdigest()[:16]


def _processor() -> str:
    """The processor and its instructions: a folder may be shared by machines that differ."""
    lines = [platform.system(), platform.machine(), platform.processor()]
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        wanted = ("model name", "flags", "CPU implementer", "CPU part", "Features")
        found = {line.split(":")[0].strip(): line for line in listed.read_text(errors="replace").splitlines()}
        lines += [found[name] for name in wanted if name in found]
    elif sys.platform == "darwin":
        brand = ["sysctl", "-n", "machdep.cpu.brand_string"]
        lines.append(subprocess.run(brand, capture_output=True, text=True, check=False).stdout)
    return "\n".join(lines)


def _intact(folder: Path, name: str) -> Iterator[Path]:
    """The libraries of that name which are what was written: loading a damaged one could end the process."""
    for kept in sorted(folder.glob(f"{name}-*.so")):
        if kept.name == f"{name}-{_digest(kept)}.so":
            yield kept


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _keep(library: Path, folder: Path, name: str) -> Path:
    """Copy into `folder`, where it appears complete or not at all, however many processes do it at once."""
    kept = folder / f"{name}-{_digest(library)}.so"
    descriptor, unfinished = tempfile.mkstemp(prefix=kept.name, suffix=".tmp", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(library.read_bytes())
        Path(unfinished).chmod(library.stat().st_mode & 0o777)
        os.replace(unfinished, kept)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    for other in folder.glob(f"{library.stem}-*.tmp"):  # of processes that were killed here
        with suppress(OSError):
            if other.stat().st_mtime < time.time() - 3600:
                other.unlink()
    return kept


def _temporary_folder(otherwise: Path | None) -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="adopt_hf_")
    except OSError:
        if otherwise is None:
            raise
        return tempfile.TemporaryDirectory(prefix="adopt_hf_", dir=otherwise)


def _compile(source: Path, compiler: list[str], library: Path) -> None:
    """Compile for this processor, or, where the compiler cannot, for all of its kind.

    Raises:
        RuntimeError: the compiler fails; the message has its first errors.
    """
    failures = []
    for native in ([NATIVE], []):
        command = [*compiler, *FLAGS, *native, "-o", str(library), str(source), "-lm"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{shlex.join(compiler)} did not compile {source.name} in {SECONDS} s") from error
        except OSError as error:
            raise RuntimeError(f"{shlex.join(compiler)} cannot be run: {error}") from error
        if done.returncode == 0:
            return
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line] or lines[-3:]
        failures.append("; ".join(errors[:3])[:500] or f"exit code {done.returncode}")
    raise RuntimeError(f"{shlex.join(compiler)} cannot compile {source.name}: {failures[0]}")
