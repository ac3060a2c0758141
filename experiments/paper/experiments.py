"""The experiments, in the order of docs/evidence.md: modules of this folder.

Each offers NAME, TITLE, parts(quick), one(**settings), claims(rows), table(rows) and plot(rows, path); and
NOTE, if there is something to say under its title in docs/evidence.md: what is measured, and the rule of its verdicts.
"""

import importlib
from collections.abc import Iterable
from types import ModuleType

from experiments.harness.runs import InputError
from experiments.table import PAPER

EXPERIMENTS = tuple(PAPER)


def load(names: Iterable[str] = EXPERIMENTS) -> list[ModuleType]:
    """The modules with these names.

    Raises:
        InputError: If a name is not among EXPERIMENTS.
    """
    found = []
    for name in names:
        if name not in EXPERIMENTS:
            raise InputError(f"there is no experiment {name!r}; choose from {', '.join(EXPERIMENTS)}")
        found.append(importlib.import_module(f"experiments.paper.{name}"))
    return found
