"""The C source of the CPU kernel: its compiler flags, its digest, and the names of the libraries that wheels contain.

hatch_build.py loads this file by its path, without the package, so it imports only the standard library.
"""

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent
KERNEL = FOLDER / "kernel.c"
# No fused multiply-adds and no fast math, so results are equal on all machines and NaN stays NaN.
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=c11")
LOADABLE = (".so", ".dylib", ".dll")


def digest() -> str:
    """Return a digest of the C files and the flags. Libraries that were made from others are not loaded."""
    files = sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")])
    parts = [" ".join(FLAGS).encode(), *(part for file in files for part in (file.name.encode(), file.read_bytes()))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def library_name(library: bytes, suffix: str) -> str:
    """Return the file name of a library in a wheel. It has the digests of the source and of the library itself."""
    return f"{KERNEL.stem}-{digest()}-{hashlib.sha256(library).hexdigest()[:16]}{suffix}"
