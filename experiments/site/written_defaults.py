"""An extension of griffe: signatures show the numbers that the code reads from its table of options."""

import re
from typing import Any

import griffe

from adopt_hf.hyperparameters import DEFAULTS, OF_ADOPTW

TABLES = {"DEFAULTS": DEFAULTS, "OF_ADOPTW": DEFAULTS | OF_ADOPTW}
ENTRY = re.compile(r"(\w+)\[['\"](\w+)['\"]\]")


class WrittenDefaults(griffe.Extension):
    """Write the value of each default that is an entry of one of TABLES."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        for parameter in func.parameters:
            entry = ENTRY.fullmatch(str(parameter.default))
            if entry and entry[1] in TABLES:
                parameter.default = repr(TABLES[entry[1]][entry[2]])
