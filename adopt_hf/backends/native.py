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
from contextlib import suppress
from functools import cache
from pathlib import Path

# No contraction to fused multiply-adds and no fast math: a result is the same on every machine, and NaN stays NaN.
FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-std=c11", "-shared", "-fPIC", "-pthread"),
)
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 120  # for one call of the compiler, which takes less than one


def cache_folder() -> Path:
    """Where compiled libraries are kept: ADOPT_HF_CACHE, or adopt_hf in the user's cache folder."""
    named = os.environ.get("ADOPT_HF_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "adopt_hf"


@cache
def load(source: Path) -> ctypes.CDLL:
    """The library of a C file, from the cache folder if it has been compiled for this machine before.

    Where the folder cannot be written or its files cannot be run, the library is compiled for this process alone.

    Raises:
        RuntimeError: it cannot be compiled or loaded here; the message says why.
    """
    compiler = _compiler()
    name = f"{source.stem}-{_key(source, compiler)}.so"
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _loaded(source, compiler, folder / name)
    except OSError:  # not writable, full, or mounted without execution
        with tempfile.TemporaryDirectory(prefix="adopt_hf_") as own:
            try:
                return _loaded(source, compiler, Path(own) / name)  # stays loaded when the file is gone
            except OSError as error:
                raise RuntimeError(f"the compiled {source.name} cannot be loaded: {error}") from error


def _loaded(source: Path, compiler: list[str], library: Path) -> ctypes.CDLL:
    if library.exists():
        with suppress(OSError):  # damaged: compiled anew
            return ctypes.CDLL(str(library))
    _compile(source, compiler, library)
    return ctypes.CDLL(str(library))


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


def _compile(source: Path, compiler: list[str], library: Path) -> None:
    """Compile into `library`, which appears complete or not at all, however many processes do it at once.

    Raises:
        OSError: the folder cannot be written.
        RuntimeError: the compiler fails; the message has its first errors.
    """
    descriptor, unfinished = tempfile.mkstemp(prefix=library.name, suffix=".tmp", dir=library.parent)
    os.close(descriptor)
    command = [*compiler, *FLAGS, "-o", unfinished, str(source), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
        if done.returncode != 0:
            errors = [line.strip() for line in done.stderr.splitlines() if "error" in line]
            said = "; ".join(errors[:3])[:500] or f"exit code {done.returncode}"
            raise RuntimeError(f"{shlex.join(compiler)} cannot compile {source.name}: {said}")
        os.replace(unfinished, library)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{shlex.join(compiler)} did not compile {source.name} in {SECONDS} s") from error
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _key(source: Path, compiler: list[str]) -> str:
    """What the library depends on: its source, the compiler and its flags, and the processor it is made for."""
    program = Path(compiler[0]).resolve()
    stat = program.stat()
    parts = (" ".join((*compiler, *FLAGS)), f"{program} {stat.st_size} {stat.st_mtime_ns}", _processor())
    return hashlib.sha256("\0".join(parts).encode() + source.read_bytes()).hexdigest()[:16]


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
