"""The reference of the launch modes: the config of each, and what was measured with it."""

from experiments.harness import pages
from experiments.harness.machine import ROOT
from experiments.launches.matrix import COLUMNS, LOOPS, MODES, NOT_HERE, Matrix, Mode, shown

CONFIGS = "examples/accelerate_configs"


def texts() -> dict[str, str]:
    """Return the page of the launch modes."""
    matrix = Matrix.load()
    parts = [
        "# Launch modes\n\nEach mode is a file of "
        f"[{CONFIGS}]({CONFIGS}), which `accelerate launch` reads. "
        "[What works](docs/integrations.md#what-works) has the measurements in one table, and explains "
        "its columns.\n"
    ]
    for config in dict.fromkeys(mode.config for mode in MODES):
        modes = [mode for mode in MODES if mode.config == config]
        parts += [_head(config), *(_measured(matrix, mode) for mode in modes)]
    for name, why in NOT_HERE.items():
        config, precision = name.split()
        parts += [_head(config), f"`{name}` ({precision}): not in the table, because {why}.\n"]
    return {"reference/launch_modes.md": "\n".join(parts)}


def _head(config: str) -> str:
    file = f"{CONFIGS}/{config}.yaml"
    text = (ROOT / file).read_text(encoding="utf-8").rstrip()
    return f"## {config}\n\nThe file [{config}.yaml]({file}):\n\n~~~ yaml\n{text}\n~~~\n"


def _measured(matrix: Matrix, mode: Mode) -> str:
    rows = [
        [loop, *(shown(mode, matrix.cells.get((mode.name, loop, column), "not run")) for column in COLUMNS)]
        for loop in LOOPS
    ]
    return f"`{mode.name}`, {matrix.seen[mode.name]}:\n\n{pages.table(['loop', *COLUMNS], rows)}\n"
