"""The traffic that a step of ADOPT adds to a step of AdamW, for `python -m adopt_hf memory`.

DDP and FSDP: nothing, because every rank has all elements that its update needs. The first gradient of a shard is the
exception: at that step the ranks of the shard sum a count of 8 bytes for each such tensor.

ZeRO: one all-reduce of CPU tensors in each step, in which the ranks agree on the tensors that got a gradient
(`adopt_hf.integrations.deepspeed.arrivals`). It has a byte for each trained tensor, and one more. Under ZeRO 2 and 3
with the optimizer offloaded it has as many for each micro-batch. The size does not depend on the number of ranks.
"""

from typing import NamedTuple

from adopt_hf.memory import MODES


class Added(NamedTuple):
    """The all-reduces that ADOPT adds to a step, and their bytes together."""

    all_reduces: int
    bytes: int


def added(tensors: int, mode: str, offload: str | None = None, micro_batches: int = 1) -> Added:
    """Return what ADOPT adds to each step of AdamW after the first.

    Args:
        tensors: Number of trained tensors.
        mode: One of the keys of `adopt_hf.memory.MODES`.
        offload: None, "optimizer" or "parameters". Default: None.
        micro_batches: Micro-batches of a step. Default: 1.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if not mode.startswith("zero"):
        return Added(0, 0)
    counted = micro_batches if offload is not None and mode in ("zero2", "zero3") else 1
    return Added(1, (1 + tensors) * counted)
