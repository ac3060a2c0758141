"""The device meshes that are tested, the bounds that they are held to, and the table of what was measured.

`make test-distributed-docs` keeps the numbers in docs/results/mesh_modes.json and writes the page from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.harness import pages
from experiments.launches.matrix import BF16_SHARE, COLUMNS, LOOPS

# Tensor parallelism adds the parts of a sum in another order in each matrix product.
PARITY = 2e-6
# 8-bit moments of a mesh have other blocks and other random bits than those of one process.
SHARE_OF_8_BITS = BF16_SHARE


@dataclass(frozen=True)
class Mesh:
    """A mesh, as transformers and Accelerate are told of it, and the number of processes that it needs."""

    name: str
    world_size: int
    distributed: Mapping[str, int]  # the sizes of transformers' DistributedConfig
    parallelism: Mapping[str, int] | None = None  # of Accelerate's ParallelismConfig
    is_sharded_by_accelerate: bool = False  # in the Accelerate loop the model is loaded whole

    def __str__(self) -> str:
        return self.name

    @property
    def loops(self) -> tuple[str, ...]:
        """The loops that can train on this mesh."""
        return LOOPS if self.parallelism is not None else LOOPS[:1]

    @property
    def sizes(self) -> str:
        """The sizes of transformers' DistributedConfig, as the table has them."""
        return ", ".join(f"{name}={size}" for name, size in self.distributed.items())


MESHES = [
    Mesh("tp", 2, {"tp_size": 2}, {"tp_size": 2}),
    Mesh("ep, tp", 2, {"tp_size": 2, "ep_size": 2}, {"tp_size": 2}),
    Mesh("ep, fsdp", 2, {"fsdp_size": 2, "ep_size": 2}),
    Mesh("fsdp, tp", 4, {"fsdp_size": 2, "tp_size": 2}, {"dp_shard_size": 2, "tp_size": 2}),
    Mesh(
        "ep, fsdp, tp",
        4,
        {"fsdp_size": 2, "tp_size": 2, "ep_size": 4},
        {"dp_shard_size": 2, "tp_size": 2},
    ),
    Mesh(
        "hsdp",
        4,
        {"dp_replicate_size": 2, "fsdp_size": 2},
        {"dp_replicate_size": 2, "dp_shard_size": 2},
        is_sharded_by_accelerate=True,
    ),
]

REFUSED = "refused by transformers"  # to save the optimizer of a model that was sharded when it was loaded
NOT_PREPARED = "refused by Accelerate"  # which wraps a model without tensor parallelism in DDP

# What no process on CPUs can run, and why; a test shows that AdamW fails in the same way.
NOT_HERE = {
    "fsdp, tp by Accelerate": "Accelerate 1.15 imports ReplicateParallel, which transformers 5.23 does not have",
    "cp": "torch has no context parallel attention for CPUs",
    "tp, LoRA of o_proj": "the forward pass of peft 0.21 fails on weights that are cut by rows",
}


@dataclass(frozen=True)
class Smoke:
    """What has a short test only: the processes, how it is asked for, and the columns that the test fills."""

    name: str
    setting: str
    cells: Mapping[tuple[str, str], str | None]  # by loop and column: the words, or None for a number

    world_size: int = 2


BY_TRAINER = {("trainer", "parity"): None, ("trainer", "resume"): "bit for bit", ("trainer", "really ADOPT"): "yes"}
HPZ = Smoke("ZeRO++ (hpZ)", "`zero_hpz_partition_size=2`, stage 3", BY_TRAINER)
AUTO_TP = Smoke("AutoTP", "`autotp_size=2`, stage 1", BY_TRAINER)
ASYNC = Smoke(
    "fsdp, saved while it trains", "`dcp.async_save`, a loop of torch", {("accelerate", "resume"): "bit for bit"}
)
SMOKES = (HPZ, AUTO_TP, ASYNC)


def wanted(mesh: Mesh, loop: str, column: str) -> str | None:
    """Return the words that a cell must have, or None for the number of parity."""
    if loop not in mesh.loops:
        return NOT_PREPARED
    if column == "resume" and loop == "trainer":
        return REFUSED
    return {"resume": "bit for bit", "really ADOPT": "yes"}.get(column)


def bounds() -> dict[tuple[str, str, str], str | None]:
    """Return the words that each cell of the table must have, None for a number of parity."""
    cells = {(m.name, loop, column): wanted(m, loop, column) for m in MESHES for loop in LOOPS for column in COLUMNS}
    return cells | {(smoke.name, *key): words for smoke in SMOKES for key, words in smoke.cells.items()}


def is_within_bounds(words: str | None, cell: Any) -> bool:
    """Return whether a cell has the words that it must have, or a number that its test allows."""
    return cell == words if words is not None else isinstance(cell, float) and 0 <= cell < PARITY


def _shown(cell: Any) -> str:
    return str(cell) if not isinstance(cell, float) else f"{cell:.0e}" if cell else "0"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the measurements as a Markdown table."""
    cells = {(row["mesh"], row["loop"], row["column"]): row["cell"] for row in rows}
    columns = [(loop, column) for loop in LOOPS for column in COLUMNS]

    def line(name: str, processes: int, setting: str, empty: str) -> list[str]:
        found = [cells.get((name, loop, column), empty) for loop, column in columns]
        return [name, str(processes), setting, *(_shown(x) for x in found)]

    lines = [line(mesh.name, mesh.world_size, f"`{mesh.sizes}`", "not run") for mesh in MESHES]
    lines += [line(smoke.name, smoke.world_size, smoke.setting, "") for smoke in SMOKES]
    for name, why in NOT_HERE.items():
        lines.append([name, "", f"skipped: {why}; AdamW fails, too", *[""] * len(columns)])
    header = ["mesh", "processes", "setting", *(f"{loop}: {column}" for loop, column in columns)]
    return pages.table(header, lines)
