"""The library of the CPU kernel that a wheel contains, for all processors of its platform (hatch_build.py).

It belongs to the installed package, so it is trusted as the package's Python files are.
"""

import ctypes
import platform
from pathlib import Path

from adopt_hf.backends.cpu import source, target

PLATFORMS = ("Linux x86_64", "Linux aarch64", "Darwin arm64", "Windows AMD64", "Windows ARM64")  # of hatch_build.py


def load() -> tuple[ctypes.CDLL, Path]:
    """Return the library of the installed wheel, and its file.

    Raises:
        RuntimeError: If there is none for this source and this machine, or if it is damaged or cannot be loaded.
    """
    found = sorted(path for path in source.FOLDER.glob(f"{source.KERNEL.stem}-*-*") if path.suffix in source.LOADABLE)
    fitting = [path for path in found if path.name.startswith(f"{source.KERNEL.stem}-{source.digest()}-")]
    if not found:
        here = f"{platform.system()} {platform.machine()}"
        if here not in PLATFORMS:
            raise RuntimeError(f"No wheel of adopt_hf has a compiled kernel for {here}")
        raise RuntimeError(f"The wheel of adopt_hf for {here} has a compiled kernel, and this installation has none")
    if not fitting:
        raise RuntimeError(
            f"{found[0]} was compiled from other C files than those of this installation. Install adopt_hf again"
        )
    path = fitting[0]
    try:
        data = path.read_bytes()
        if path.name != source.library_name(data, path.suffix):
            raise RuntimeError(f"{path} is damaged. Install adopt_hf again")
        other = target.mismatch(data)
        if other is not None:
            raise RuntimeError(f"{path} was compiled {other}")
        return ctypes.CDLL(str(path)), path
    except OSError as error:
        raise RuntimeError(f"{path} cannot be loaded: {error}") from error
