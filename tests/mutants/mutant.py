"""One planted fault: a small change of one file, and the tests that have to notice it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """A text that stands once in a file, and what is put there instead."""

    name: str
    file: str  # relative to the root of the repository
    old: str
    new: str
    tests: tuple[str, ...]  # arguments of pytest: files, test ids, and options such as `-k`
    why: str  # one line: what a user would suffer


class NotApplicableError(Exception):
    """The text of a mutant does not stand in its file exactly once."""


def apply(mutant: Mutant, root: Path) -> None:
    """Change the file under `root`.

    Raises:
        NotApplicableError: If the old text does not stand there exactly once, or is the new one.
    """
    path = root / mutant.file
    if not path.is_file():
        raise NotApplicableError(f"{mutant.file} does not exist")
    text = path.read_text(encoding="utf-8")
    found = text.count(mutant.old)
    if found != 1 or mutant.old == mutant.new:
        raise NotApplicableError(f"the old text stands {found} times in {mutant.file}, it must stand there once")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def check(mutants: Sequence[Mutant]) -> None:
    """Raise ValueError if two mutants have one name, or one has no tests."""
    names = [mutant.name for mutant in mutants]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise ValueError(f"names of mutants must differ, these do not: {', '.join(double)}")
    without = [mutant.name for mutant in mutants if not mutant.tests]
    if without:
        raise ValueError(f"a mutant must name tests, these have none: {', '.join(without)}")
