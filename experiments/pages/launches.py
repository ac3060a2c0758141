"""Launch modes, kills and bytes of optimizer state: what `make test-distributed-docs` has kept."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from adopt_hf import memory, memory_models
from adopt_hf.commands import memory as memory_command
from adopt_hf.integrations.deepspeed.refused import REPLACEMENTS
from adopt_hf.state import quantization
from experiments.harness import machine as conditions
from experiments.harness import pages
from experiments.harness.machine import RESULTS
from experiments.launches import meshes
from experiments.launches.matrix import Matrix
from experiments.launches.memory_model import Model

KINDS = {"ddp": "DDP", "zero2": "ZeRO 2", "fsdp2_sharded": "FSDP2, sharded checkpoints"}
STAGES_1_2 = [(f"zero{stage}", offload) for stage in (1, 2) for offload in (None, "optimizer")]
STAGE_3 = [("zero3", offload) for offload in (None, "optimizer", "parameters")]
MEASURED: dict[str, tuple[list[tuple[str, str | None]], tuple[str, ...]]] = {  # modes with offload, and precisions,
    "DDP": ([("ddp", None)], ("fp32", "bf16")),  # all of which have the same bytes
    "ZeRO 0 in fp32": ([("zero0", None)], ("fp32",)),
    "ZeRO 0 in bf16": ([("zero0", None)], ("bf16",)),
    "FSDP1 in fp32": ([("fsdp1", None)], ("fp32",)),
    "FSDP1 in bf16": ([("fsdp1", None)], ("bf16",)),
    "FSDP2": ([("fsdp", None)], ("fp32", "bf16")),
    "ZeRO 1 and 2": (STAGES_1_2, ("fp32", "bf16")),
    "ZeRO 3": (STAGE_3, ("fp32", "bf16")),
}


def read(name: str) -> dict[str, Any]:
    """Return the numbers that were kept under this name."""
    kept: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return kept


def launch_modes() -> str:
    matrix = Matrix.load()
    return f"{matrix.table()}\n\n{conditions.sentence(matrix.conditions)}"


def mesh_modes() -> str:
    kept = read("mesh_modes")
    return f"{meshes.table(kept['rows'])}\n\n{conditions.sentence(kept['conditions'])}"


def kills() -> str:
    kept = read("kills")
    head = ["mode", "script", "kills (of all, of one)", "while saving", "left an incomplete checkpoint"]
    lines = []
    for row in kept["rows"]:
        of = f"{row['kills']} ({row['of_all']}, {row['kills'] - row['of_all']})"
        lines.append((KINDS[row["config"]], row["script"], of, row["in_saving"], row["incomplete"]))
    return f"{pages.table(head, lines)}\n\n{conditions.sentence(kept['conditions'])}"


def number_of_kills() -> str:
    return str(sum(row["kills"] for row in read("kills")["rows"]))


def state_bytes() -> str:
    """The bytes that were counted in each process, moments and float32 weights.

    Raises:
        ValueError: If modes that share a row do not have the same bytes.
    """
    kept = read("state_bytes")
    head = ["bytes per process: moments + fp32 weights", "1 process", "2 processes"]
    lines = []
    for title, (modes, precisions) in MEASURED.items():
        cells = []
        for processes in (1, 2):
            wanted = [
                {"processes": processes, "mode": mode, "offload": offload, "precision": precision}
                for mode, offload in modes
                for precision in precisions
            ]
            texts = {_of_ranks(kept["rows"], row) for row in wanted}
            if len(texts) != 1:
                raise ValueError(f"{title}, {processes} processes: one row of the table, but {sorted(texts)}")
            cells += texts
        lines.append([title, *cells])
    return f"{pages.table(head, lines, numbers=True)}\n\n{conditions.sentence(kept['conditions'])}"


def _of_ranks(rows: list[Mapping[str, Any]], wanted: Mapping[str, Any]) -> str:
    found = [row for row in rows if row.items() >= wanted.items()]
    texts = [f"{row['moments']:,} + {row['master']:,}" for row in sorted(found, key=lambda row: row["rank"])]
    if len(set(texts)) == 1:
        return texts[0]
    return ", ".join(f"{text} (rank {rank})" for rank, text in enumerate(texts))


def memory_model() -> str:
    """The size of the model whose bytes are counted."""
    tensors = list(Model().parameters())
    return (
        f"{sum(p.numel() for p in tensors):,} parameters of odd shapes in {len(tensors)} tensors and two param groups"
    )


def refused_settings() -> str:
    return pages.table(["setting", "it"], [(f"`{'.'.join(row.path)}`", row.what) for row in REPLACEMENTS])


def in_8_bits(name: str) -> str:
    """The bytes of 8-bit moments a parameter of a model, embeddings and small tensors among them."""
    model = memory_models.MODELS[name]
    return f"{memory.state_bytes(model, state_bits=8).moments / model.elements:.1f}"


def fsdp_excess(name: str, *processes: int) -> str:
    """By how many per cent rank 0 of FSDP2 holds more than parameters / processes, at most."""
    model = memory_models.MODELS[name]
    excess = [
        memory.state_bytes(model, mode="fsdp", world_size=n).moments
        / memory.state_bytes(model.elements, mode="fsdp", world_size=n).moments
        - 1
        for n in processes
    ]
    return f"{100 * max(excess):.2g}"


def of_a_tensor() -> str:
    """The bytes of 8-bit moments a parameter of a tensor that is kept so."""
    return f"{memory.MOMENTS[8] + memory.SCALES / quantization.BLOCK_SIZE:.2f}"


TEXTS: dict[str, Callable[[], str]] = {
    "launch modes": launch_modes,
    "mesh modes": mesh_modes,
    "kills": kills,
    "number of kills": number_of_kills,
    "measured bytes": state_bytes,
    "memory model": memory_model,
    "refused settings": refused_settings,
    "memory": memory_command.table,
    "time": memory_command.time_table,
    "FSDP's excess to 256 of GPT-2": lambda: fsdp_excess("gpt2", 8, 64, 256),
    "FSDP's excess to 256 of Llama": lambda: fsdp_excess("llama-7b", 8, 64, 256),
    "FSDP's excess at 1024 of GPT-2": lambda: fsdp_excess("gpt2", 1024),
    "FSDP's excess at 1024 of Llama": lambda: fsdp_excess("llama-7b", 1024),
    "bytes in 8 bits": of_a_tensor,
    "bytes in 8 bits of GPT-2": lambda: in_8_bits("gpt2"),
    "bytes in 8 bits of Llama": lambda: in_8_bits("llama-7b"),
}
