"""The launch modes that are tested, the bounds that they are held to, and what was measured in each.

`make test-distributed-docs` keeps the numbers in docs/results/launch_modes.json and writes the page from them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.harness import machine as conditions
from experiments.harness import pages

RESULTS = conditions.RESULTS / "launch_modes.json"
COLUMNS = ("parity", "resume", "really ADOPT")
LOOPS = ("trainer", "accelerate")
FP32_TOLERANCE = 1e-6
# In bf16 every matrix product rounds to 2**-9; a tenth of the way that the weights went is wide of that, and a fifth of
# what another optimizer makes of it (a test).
BF16_SHARE = 0.1


@dataclass(frozen=True)
class Mode:
    """A config file, a precision, and what must be found in a process that was launched with them."""

    config: str
    distributed_type: str
    bf16: bool = False
    stage: int | None = None  # ZeRO's
    wrapper: str = "ADOPTW"  # the class between accelerate's optimizer and ADOPT, itself if there is none
    world_size: int = 2
    sharded: bool = False  # the optimizer state is
    dtensors: bool = False
    offload: tuple[str, str] = ("none", "none")  # where DeepSpeed keeps the optimizer and the parameters

    @property
    def name(self) -> str:
        return f"{self.config} {'bf16' if self.bf16 else 'fp32'}"

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


def seen_as(mode: Mode) -> str:
    """Return the number of processes and the type, as the table has them."""
    return f"{mode.world_size}, {mode.distributed_type}{'' if mode.stage is None else f' {mode.stage}'}"


STAGE_1_2, STAGE_3 = "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3"

MODES = [
    Mode("cpu", "NO", world_size=1),
    Mode("ddp", "MULTI_CPU"),
    Mode("fsdp2", "FSDP", sharded=True, dtensors=True),
    Mode("fsdp2_sharded", "FSDP", sharded=True, dtensors=True),
    Mode("zero0", "DEEPSPEED", stage=0),
    Mode("zero1", "DEEPSPEED", stage=1, wrapper=STAGE_1_2, sharded=True),
    Mode("zero2", "DEEPSPEED", stage=2, wrapper=STAGE_1_2, sharded=True),
    Mode("zero3", "DEEPSPEED", stage=3, wrapper=STAGE_3, sharded=True),
    Mode("zero0", "DEEPSPEED", bf16=True, stage=0, wrapper="FP16_UnfusedOptimizer"),
    Mode("zero1", "DEEPSPEED", bf16=True, stage=1, wrapper=STAGE_1_2, sharded=True),
    Mode("zero2", "DEEPSPEED", bf16=True, stage=2, wrapper=STAGE_1_2, sharded=True),
    Mode("zero3", "DEEPSPEED", bf16=True, stage=3, wrapper=STAGE_3, sharded=True),
    Mode("zero1_offload", "DEEPSPEED", offload=("cpu", "none"), stage=1, wrapper=STAGE_1_2, sharded=True),
    Mode("zero2_offload", "DEEPSPEED", offload=("cpu", "none"), stage=2, wrapper=STAGE_1_2, sharded=True),
    Mode("zero3_offload", "DEEPSPEED", offload=("cpu", "none"), stage=3, wrapper=STAGE_3, sharded=True),
    Mode("zero3_offload_parameters", "DEEPSPEED", offload=("cpu", "cpu"), stage=3, wrapper=STAGE_3, sharded=True),
]

# What this machine cannot run, and why; the rows stand in the table all the same.
NOT_HERE = {
    "fsdp1 fp32": "on CPUs FSDP1 fails, with AdamW too; tests/processes/test_gpu.py runs it on GPUs",
    "zero3_nvme fp32": "tests/processes/test_nvme.py runs it where libaio is installed, on a larger model",
}


Cell = float | str  # a number that was measured, or words


def shown(mode: Mode, cell: Cell) -> str:
    """Return a cell of the table, with the numbers of parity in the mode's form."""
    if isinstance(cell, str):
        return cell
    return f"{cell:.1%} of the way" if mode.bf16 else f"{cell:.0e}"


def is_within_bounds(mode: Mode, column: str, cell: Cell) -> bool:
    """Return whether a cell is within the bounds of the measurement's own test."""
    if column != "parity":
        return cell == {"resume": "bit for bit", "really ADOPT": "yes"}[column]
    if mode.world_size == 1:
        return cell == "the reference"
    return isinstance(cell, float) and 0 <= cell < (BF16_SHARE if mode.bf16 else FP32_TOLERANCE)


@dataclass
class Matrix:
    """The measurements: a cell for each mode, loop and column."""

    cells: dict[tuple[str, str, str], Cell] = field(default_factory=dict)
    seen: dict[str, str] = field(default_factory=dict)  # world size and distributed type, as found in the processes
    conditions: Mapping[str, Any] = field(default_factory=dict)  # of the run

    def note(self, mode: Mode, loop: str, column: str, cell: Cell) -> None:
        assert column in COLUMNS
        assert loop in LOOPS
        self.cells[mode.name, loop, column] = cell

    def table(self) -> str:
        """Return the matrix as a Markdown table."""
        header = [
            "config, precision",
            "processes, type",
            *(f"{loop}: {column}" for loop in LOOPS for column in COLUMNS),
        ]
        lines = []
        for mode in MODES:
            cells = [self.cells.get((mode.name, loop, column), "not run") for loop in LOOPS for column in COLUMNS]
            lines.append([mode.name, self.seen.get(mode.name, ""), *(shown(mode, cell) for cell in cells)])
        for name, why in NOT_HERE.items():
            lines.append([name, f"skipped: {why}", *[""] * (len(header) - 2)])
        return pages.table(header, lines)

    def save(self, path: Path = RESULTS) -> None:
        """Keep the measurements."""
        cells = [[*key, cell] for key, cell in self.cells.items()]
        kept = {"conditions": self.conditions, "seen": self.seen, "cells": cells}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path = RESULTS) -> "Matrix":
        """Return the kept measurements."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        cells = {(name, loop, column): cell for name, loop, column, cell in kept["cells"]}
        return cls(cells, kept["seen"], kept["conditions"])
