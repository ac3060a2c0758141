"""The processor and the C library that a library was compiled for, next to those of this process. Linux only."""

import re
import sys
from pathlib import Path

ELF_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 21: "ppc64", 22: "s390x", 243: "riscv"}
MADE_FOR_MUSL = re.compile(rb"\0libc\.(musl-[^\0]+\.so\.1|so)\0")  # glibc's is libc.so.6


def mismatch(library: bytes) -> str | None:
    """Return for what else a library was compiled, or None if it was compiled for this process.

    The loader would report a missing file, or load a second C library.
    """
    program = Path("/proc/self/exe")
    if not sys.platform.startswith("linux") or not program.exists():
        return None
    with program.open("rb") as file:
        ours = file.read(4096)  # the name of the loader is near the beginning
    machines = [_machine(ours), _machine(library)]
    if machines[0] != machines[1]:
        return f"for {machines[1]}, and this Python runs on {machines[0]}"
    if MADE_FOR_MUSL.search(library) and b"ld-musl" not in ours:
        return "for the C library musl, and this Python uses another one"
    return None


def _machine(head: bytes) -> str:
    """Return the processor that an ELF file was made for, with its word size."""
    if head[:4] != b"\x7fELF" or len(head) < 20:
        return "no machine that Linux knows"
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    return f"{ELF_MACHINES.get(number, f'ELF machine {number}')} ({32 * head[4]} bits)"
