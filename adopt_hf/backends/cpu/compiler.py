"""Compile C source to a loaded library on first use, with the machine's own compiler, and keep it in `cache`."""

import ctypes
import hashlib
import logging
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

from adopt_hf.backends import cache as files
from adopt_hf.backends.cpu import target
from adopt_hf.backends.cpu.source import FLAGS as OF_NUMBERS

logger = logging.getLogger("adopt_hf")

FLAGS = (*OF_NUMBERS, "-shared", "-fPIC", "-pthread")
NATIVE = "-march=native"  # unknown to some compilers
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 120  # timeout of one compiler call, which takes one or two seconds


@cache
def load(source: Path) -> ctypes.CDLL:
    """Return the library of a C file, from the cache folder if it has been compiled for this machine before.

    If the folder cannot be used or trusted, or its files cannot be run, the library is compiled for this process only,
    and a warning gives the reason.

    Args:
        source: The C file. Headers are in the same folder.

    Raises:
        RuntimeError: If it cannot be compiled or loaded here. The message gives the reason.
    """
    try:
        return _load(source)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{source.name} cannot be compiled and loaded: {error}") from error


def _load(source: Path) -> ctypes.CDLL:
    compiler = command()
    name = f"{source.stem}-{_key(source, compiler)}"
    folder = None
    try:
        folder = files.folder()
    except RuntimeError as error:
        reason = str(error)
    if folder is not None:
        for kept in sorted(folder.glob(f"{name}-*.so")):
            library, reason = _load_kept(kept, name)
            if library is not None:
                return library
            logger.info("%s is compiled again: %s", kept, reason)
            with suppress(OSError):
                kept.unlink()
    with _temporary_folder(folder) as own:
        path = Path(own) / f"{name}.so"
        _compile(source, compiler, path)
        other = target.mismatch(path.read_bytes())
        if other is not None:
            raise RuntimeError(f"{shlex.join(compiler)} compiles {other}. Set CC to another compiler")
        if folder is not None:
            library, reason = _keep(path, folder, name)
            if library is not None:
                return library
        try:
            library = ctypes.CDLL(str(path))  # the library stays loaded after its file is deleted
        except OSError as error:
            raise RuntimeError(
                f"{shlex.join(compiler)} compiles {source.name} to a library that cannot be loaded here: {error}. "
                "Set CC to another compiler"
            ) from error
    logger.warning(
        "The compiled CPU kernel cannot be cached, so every process compiles it, for a second or two: %s",
        reason,
    )
    return library


def _load_kept(kept: Path, name: str) -> tuple[ctypes.CDLL | None, str]:
    """Return a library of the cache folder, or the reason why it is not loaded.

    The file must have the digest in its name, because loading a damaged library can end the process. The file is loaded
    through the descriptor that was checked, so another process cannot replace it in between.
    """
    try:
        descriptor = files.open_trusted(kept)
    except (OSError, RuntimeError) as error:
        return None, str(error)
    try:
        with os.fdopen(os.dup(descriptor), "rb") as file:
            intact = kept.name == f"{name}-{_digest(file.read())}.so"
        if not intact:
            return None, "the file is damaged"
        opened = Path(f"/proc/self/fd/{descriptor}")
        library = ctypes.CDLL(str(opened if opened.exists() else kept))
    except OSError as error:  # for example a file system that is mounted without execution
        return None, str(error)
    else:
        # Keep the descriptor open: the loader takes its number for a name, which no other library may reuse.
        descriptor = -1
        return library, ""
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _digest(library: bytes) -> str:
    return hashlib.sha256(library).hexdigest()[:16]


def _keep(path: Path, folder: Path, name: str) -> tuple[ctypes.CDLL | None, str]:
    """Copy a library into the cache folder and load it from there. Delete the copy if it cannot be loaded."""
    data = path.read_bytes()
    kept = folder / f"{name}-{_digest(data)}.so"
    try:
        files.write(kept, data, 0o755)
    except OSError as error:
        return None, str(error)
    library, reason = _load_kept(kept, name)
    if library is None:
        with suppress(OSError):
            kept.unlink()
    return library, reason


def command() -> list[str]:
    """Return the command of the C compiler: CC, or the first installed one of `COMPILERS`.

    Raises:
        RuntimeError: If there is none.
    """
    if sys.platform == "win32":
        raise RuntimeError("the CPU kernel is not compiled on Windows")
    named = os.environ.get("CC")
    if named:
        words = shlex.split(named)
        found = shutil.which(words[0]) if words else None
        if found is None:
            raise RuntimeError(f"CC is {named!r}, and this C compiler was not found. Set CC to an installed C compiler")
        return [found, *words[1:]]
    for name in COMPILERS:
        found = shutil.which(name)
        if found:
            return [found]
    raise RuntimeError(f"no C compiler was found (looked for {', '.join(COMPILERS)}). Install one, or set CC to one")


def _key(source: Path, compiler: list[str]) -> str:
    """Return a digest of all that the library depends on: source, headers, compiler, flags and processor."""
    program = Path(compiler[0]).resolve()
    stat = program.stat()
    parts = (" ".join((*compiler, *FLAGS)), f"{program} {stat.st_size} {stat.st_mtime_ns}", _processor())
    read = [source, *sorted(source.parent.glob("*.h"))]
    return hashlib.sha256("\0".join(parts).encode() + b"".join(file.read_bytes() for file in read)).hexdigest()[:16]


def _processor() -> str:
    """Return the processor and its instruction sets, because different machines can share a cache folder."""
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


def _temporary_folder(cache_folder: Path | None) -> "tempfile.TemporaryDirectory[str]":
    """Return a new folder for the compiler's output, in the system's temporary folder or in the cache folder."""
    try:
        usual = tempfile.TemporaryDirectory(prefix="adopt_hf_")
        reason = files.why_not_trusted(Path(usual.name))
        if reason is None:
            return usual
        usual.cleanup()
    except OSError as error:
        reason = str(error)
    if cache_folder is None:
        raise OSError(f"no folder for temporary files can be used: {reason}. Set TMPDIR to another folder")
    return tempfile.TemporaryDirectory(prefix="adopt_hf_", dir=cache_folder)


def _compile(source: Path, compiler: list[str], library: Path) -> None:
    """Compile for this processor, or for its architecture if the compiler does not know NATIVE.

    Raises:
        RuntimeError: If the compiler fails. The message has its first errors.
    """
    failures = []
    for native in ([NATIVE], []):
        call = [*compiler, *FLAGS, *native, "-o", str(library), str(source), "-lm"]
        try:
            done = subprocess.run(call, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
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
