"""The library with the CPU kernel: that of the installed wheel, or else one that the machine's compiler makes."""

import ctypes
import logging
import shlex
from functools import cache
from typing import NamedTuple

from adopt_hf.backends.cpu import answers, compiler, prebuilt, source
from adopt_hf.backends.cpu.call import declared

logger = logging.getLogger("adopt_hf")


class Found(NamedTuple):
    """A library that has passed its check."""

    library: ctypes.CDLL
    origin: str  # where it is from, and why not from elsewhere, for `adopt-hf env`


@cache
def find() -> Found:
    """Return the library for this machine, looked for once per process.

    A wheel's library comes first. Each library must compute the known results of `answers` before it is used.

    Raises:
        RuntimeError: If there is none. The message gives the reasons, and what to install.
    """
    try:
        library, path = prebuilt.load()
        kinds = answers.wrong(declared(library))
    except RuntimeError as error:
        reason = str(error)
    else:
        if not kinds:
            return Found(library, f"from the wheel, with {_instructions(library)}: {path}")
        reason = f"{path}, which came with adopt_hf, computes wrong numbers here for {', '.join(kinds)}"
        logger.warning("%s, and is not used. Please report this with the output of `adopt-hf env`", reason)
    try:
        library = compiler.load(source.KERNEL)
        command = shlex.join(compiler.command())
    except RuntimeError as error:
        raise RuntimeError(f"{error}. {reason}") from error
    kinds = answers.wrong(declared(library))
    if kinds:
        raise RuntimeError(
            f"{command} compiles {source.KERNEL.name} to a library that computes wrong numbers for {', '.join(kinds)}. "
            f"Set CC to another compiler, or leave out options such as -ffast-math. {reason}"
        )
    return Found(library, f"compiled by {command}, with {compiler.NATIVE}. {reason}")


def _instructions(library: ctypes.CDLL) -> str:
    library.adopt_instructions.restype = ctypes.c_char_p
    return str(library.adopt_instructions().decode())
