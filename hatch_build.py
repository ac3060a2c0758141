"""Build hook of hatch: compile the CPU kernel into a wheel, so that it needs no compiler where it is installed.

ADOPT_HF_WHEEL chooses the wheel: a name of `PLATFORMS`, or "any" for the wheel without a library. Without it the wheel
is for this machine, if that is a Linux with a compiler, and otherwise it has no library. `make wheels` builds all.

The libraries use neither Python nor torch, so one wheel serves every Python of a platform. GCC compiles, where there is
one for the platform: on some dtypes its code is a sixth faster than clang's. zig, from the package ziglang, links to
the oldest glibc, and compiles if there is no GCC.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
FOLDER = Path("adopt_hf/backends/cpu")
INSTRUCTIONS = ROOT / FOLDER / "instructions.c"
VARIABLE, ANY, ZIGLANG = "ADOPT_HF_WHEEL", "any", "ziglang>=0.13"
X86 = {"baseline": "x86-64", "avx2": "x86-64-v3", "avx512": "x86-64-v4"}  # sets of instructions.c, with their -march
ONE = {"baseline": ""}
LINKED = {  # by the suffix of a library: the C library and threads; on Windows only the system's own library
    ".so": ("-fPIC", "-pthread"),
    ".dylib": ("-fPIC", "-install_name", "@rpath/kernel.dylib"),
    ".dll": ("-nostdlib", "--rtlib=compiler-rt", "-lkernel32"),
}


class Platform(NamedTuple):
    """A platform with a wheel of its own."""

    tag: str  # as pip knows it
    target: str  # as zig knows it
    sets: dict[str, str]  # sets of instructions, and the option -march for each
    suffix: str = ".so"  # of a library
    machine: str = ""  # platform.machine(), if GCC can compile for it

    def gccs(self) -> tuple[str, ...]:
        """Return the commands that may be a GCC for this platform."""
        return (f"{self.machine}-linux-gnu-gcc", *(("gcc", "cc") if self == here() else ())) if self.machine else ()


PLATFORMS = {
    "manylinux_x86_64": Platform(
        "manylinux_2_17_x86_64.manylinux2014_x86_64", "x86_64-linux-gnu.2.17", X86, machine="x86_64"
    ),
    "manylinux_aarch64": Platform(
        "manylinux_2_17_aarch64.manylinux2014_aarch64", "aarch64-linux-gnu.2.17", ONE, machine="aarch64"
    ),
    "macos_arm64": Platform("macosx_11_0_arm64", "aarch64-macos.11.0", ONE, ".dylib"),
    "windows_amd64": Platform("win_amd64", "x86_64-windows-gnu", X86, ".dll"),
    "windows_arm64": Platform("win_arm64", "aarch64-windows-gnu", ONE, ".dll"),
}


def here() -> Platform | None:
    """Return the platform of this machine, if it is a Linux that has one."""
    is_linux = sys.platform == "linux" and sys.maxsize > 2**32
    return PLATFORMS.get(f"manylinux_{platform.machine()}") if is_linux else None


class NoLibraryError(Exception):
    """The reason why a library cannot be built here."""


def build(wanted: Platform, folder: Path) -> tuple[Path, str]:
    """Compile the kernel for a platform.

    Returns:
        The library, which is in `folder`, and the tag of its platform.

    Raises:
        NoLibraryError: If a compiler is missing or fails.
    """
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", wanted.target]
    has_zig = importlib.util.find_spec("ziglang") is not None
    gcc = next(([path] for path in map(shutil.which, wanted.gccs()) if path), None)
    if not has_zig and (gcc is None or wanted != here()):
        raise NoLibraryError(f"{wanted.target} needs ziglang (pip install '{ZIGLANG}')")
    source, objects = _source(), []
    for name, march in {**wanted.sets, "": ""}.items():  # the last is instructions.c, which chooses one
        objects.append(str(folder / f"{name or 'instructions'}.o"))
        command = [*(gcc or zig), *source.FLAGS, "-fvisibility=hidden", "-c", "-o", objects[-1]]
        command += [f"-Dadopt_step=adopt_step_{name}", str(source.KERNEL)] if name else [str(INSTRUCTIONS)]
        if wanted.suffix != ".dll":
            command.append("-fPIC")
        if march:
            command.append(f"-march={march}" if gcc else f"-mcpu={march.replace('-', '_')}")
        if gcc and wanted.machine == "aarch64":
            command.append("-mno-outline-atomics")  # they are functions of a library of GCC
        _run(command)
    library = folder / f"kernel{wanted.suffix}"
    _run([*(zig if has_zig else gcc or ()), "-shared", "-s", "-o", str(library), *objects, *LINKED[wanted.suffix]])
    named = library.with_name(source.library_name(library.read_bytes(), wanted.suffix))
    return library.rename(named), wanted.tag if has_zig else f"linux_{wanted.machine}"


def _source() -> Any:
    """Return the module source.py of the package, without importing the package."""
    spec = importlib.util.spec_from_file_location("adopt_hf_source", ROOT / FOLDER / "source.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise NoLibraryError(f"{shlex.join(command)} cannot be run: {error}") from error
    if done.returncode != 0:
        raise NoLibraryError(f"{shlex.join(command)} fails: {done.stderr.strip()[:2000]}")


class KernelHook(BuildHookInterface):  # type: ignore[misc]
    """Put the library into the wheel, and the platform into its name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library, unless the wheel is an editable one, whose kernel is compiled on first use."""
        name = os.environ.get(VARIABLE, "")
        if name not in ("", ANY, *PLATFORMS):
            allowed = ", ".join((ANY, *PLATFORMS))
            raise ValueError(f"{VARIABLE} is {name!r}, and there is no such wheel: write one of {allowed}")
        wanted = PLATFORMS.get(name) or (here() if not name else None)
        if wanted is None or version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory(prefix="adopt_hf_")
        try:
            library, tag = build(wanted, Path(self._folder.name))
        except NoLibraryError as error:
            if name:
                raise
            self.app.display_warning(f"The wheel has no compiled kernel: {error}")
            return
        build_data["force_include"][str(library)] = str(FOLDER / library.name)
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the library, which is in the wheel now."""
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    def dependencies(self) -> list[str]:
        """Return what an isolated build for a named platform needs."""
        return [ZIGLANG] if os.environ.get(VARIABLE) in PLATFORMS else []
