"""How many bytes of optimizer state a process holds: `python -m adopt_hf memory`.

The optimizer state is what exists only for the sake of the optimizer and grows with the model: the moments `exp_avg`
and `exp_avg_sq`, and, where a mode makes one, the float32 copy of the weights that the optimizer updates in place of
the model's own ("master weights"). Not counted: the weights, the gradients and their buffers, and the step counts
(4 bytes a tensor, in the memory of the CPU).

    moments           2 x 4 bytes an element in every mode, since they are float32 for 16-bit parameters too; with
                      state_bits=16 2 x 2, with state_bits=8 2 x 1 and 12 bytes for a block of 256, but 2 x 4 for
                      embeddings and for tensors of fewer than 4096 elements
    master weights    4 bytes an element: ZeRO 1, 2 and 3 always (float32 weights are copied as well; ZeRO 3 means to
                      share them, but compares a torch.device with a string); ZeRO 0 with 16-bit weights; DDP and
                      FSDP never

Elements of a process, of W that share the state, as DeepSpeed 0.19 and FSDP2 cut it:

    DDP, ZeRO 0    all of them
    ZeRO 1, 2      each param group is made one flat tensor, padded to a multiple of 2 W, and cut in W equal parts
    ZeRO 3         each tensor is made flat, padded to a multiple of W, and cut in W equal parts
    FSDP2          each tensor is cut between its rows, in parts of ceil(rows / W), the last of them smaller or empty
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.memory_models import Model, nearest
from adopt_hf.state import quantization

MODES = {  # name -> as it is written for people
    "ddp": "DDP",
    "fsdp": "FSDP",
    "zero0": "ZeRO 0",
    "zero1": "ZeRO 1",
    "zero2": "ZeRO 2",
    "zero3": "ZeRO 3",
}
WHOLE = ("ddp", "zero0")  # every process keeps all of it
PRECISIONS = ("fp32", "bf16", "fp16")
OFFLOAD = (None, "optimizer", "parameters")  # what ZeRO keeps in the memory of the CPU
LARGEST = 10**15  # parameters or processes; more is a slip of the finger

MOMENTS = {32: 8, 16: 4, 8: 2}  # state_bits -> bytes an element: exp_avg and exp_avg_sq
SCALES = 12  # bytes a block of 8-bit moments
MASTER = 4  # bytes an element
FLAT_ALIGNMENT = 2  # elements a process, `nccl_start_alignment_factor` of ZeRO 1 and 2

Shapes = Sequence[Sequence[Sequence[int]]]  # of each param group, of each tensor in it


@dataclass(frozen=True)
class Usage:
    """Bytes of optimizer state of one process; where processes differ, of the one that holds most, rank 0."""

    moments: int  # exp_avg and exp_avg_sq
    master: int  # the float32 copy of the weights
    offloaded: bool  # in the memory of the CPU (or on the disk, with an nvme_path) instead of the GPU's

    @property
    def total(self) -> int:
        return self.moments + self.master

    @property
    def held_by(self) -> str:
        return "CPU" if self.offloaded else "GPU"

    @property
    def gpu(self) -> int:
        return 0 if self.offloaded else self.total

    @property
    def cpu(self) -> int:
        return self.total if self.offloaded else 0


def state_bytes(
    params: float | Shapes | Model,
    *,
    mode: str = "ddp",
    world_size: int = 1,
    precision: str = "bf16",
    offload: str | None = None,
    state_bits: int = 32,
    float32: Sequence[Sequence[int]] | None = None,
) -> Usage:
    """Return the optimizer state of one process.

    Args:
        params: What is trained, of 16 or 32 bits: the shapes of its tensors, param group by param group
            (`[[p.shape for p in group["params"]] for group in optimizer.param_groups]`, before it is sharded), which
            gives the exact bytes; one of `memory_models.MODELS`; or the number of its elements, which leaves out
            padding: `params / world_size` is rounded up. `commands.memory.left_out` says what that can miss.
        mode: "ddp" (every process keeps all), "fsdp", "zero0", "zero1", "zero2" or "zero3".
        world_size: Processes that share the state: the data-parallel ones; of hybrid sharding, those of one replica.
        precision: Of the weights: "fp32", "bf16" or "fp16". It makes a difference to ZeRO 0 only.
        offload: None, "optimizer" (ZeRO 1, 2, 3) or "parameters" (those too; ZeRO 3).
        state_bits: Of each moment: 32, 16 or 8. With 8, embeddings and small tensors keep 32. Of a number of elements
            as large a share does as in the model of `memory_models.MODELS` with the nearest number.
        float32: For shapes with state_bits=8, the positions of embeddings in each param group:
            `[group.get("float32_state", ()) for group in optimizer.param_groups]`.

    Raises:
        ValueError: If a value or a combination is not allowed; says what is.
    """
    HYPERPARAMETERS["state_bits"].check("state_bits", state_bits)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got {precision!r}")
    if offload not in OFFLOAD:
        raise ValueError(f"offload must be one of {', '.join(map(repr, OFFLOAD))}, got {offload!r}")
    if offload is not None and mode not in ("zero1", "zero2", "zero3"):
        raise ValueError(f"offload {offload!r} needs ZeRO 1, 2 or 3, got {MODES[mode]}")
    if offload == "parameters" and mode != "zero3":
        raise ValueError(f"offload 'parameters' needs ZeRO 3, got {MODES[mode]}")
    world_size = _checked("world size", world_size)
    if isinstance(params, Model):
        float32, params = params.embeddings, params.groups
    if isinstance(params, int | float):
        count = _checked("params", params)
        if state_bits == 8:
            kept = round(nearest(count).share_of_float32 * count)
            parts = [(_shared(kept, mode, world_size), 32), (_shared(count - kept, mode, world_size), 8)]
        else:
            parts = [(_shared(count, mode, world_size), state_bits)]
        elements = sum(numel for numel, _ in parts)
        moments = sum(MOMENTS[bits] * numel + _scales(numel) * (bits == 8) for numel, bits in parts)
    elif state_bits == 8:
        if float32 is None or len(float32) != len(params):
            raise ValueError(
                "state_bits=8 with shapes needs the positions of the embeddings, a list for each param group: write "
                'float32=[group.get("float32_state", ()) for group in optimizer.param_groups]'
            )
        kept_groups, others = _apart(params, float32, mode)
        elements = _elements(kept_groups, mode, world_size) + _elements(others, mode, world_size)
        moments = MOMENTS[32] * _elements(kept_groups, mode, world_size)
        moments += MOMENTS[8] * _elements(others, mode, world_size) + _scales_of(others, mode, world_size)
    else:
        elements = _elements(params, mode, world_size)
        moments = MOMENTS[state_bits] * elements
    return Usage(
        moments=moments,
        master=MASTER * elements if _has_master(mode, precision) else 0,
        offloaded=offload is not None,
    )


def _shared(count: int, mode: str, world_size: int) -> int:
    return count if mode in WHOLE else _ceil(count, world_size)


def _scales(elements: int) -> int:
    """Bytes of the scales of one flat tensor."""
    return SCALES * _ceil(elements, quantization.BLOCK_SIZE)


def _apart(
    groups: Shapes, float32: Sequence[Sequence[int]], mode: str
) -> tuple[list[list[Sequence[int]]], list[list[Sequence[int]]]]:
    """The param groups of what keeps float32 moments, and of the rest, as `formats.float32_apart` makes them."""
    kept: list[list[Sequence[int]]] = [[] for _ in groups]
    others: list[list[Sequence[int]]] = [[] for _ in groups]
    for number, (group, positions) in enumerate(zip(groups, float32, strict=True)):
        for position, shape in enumerate(group):
            small = math.prod(shape) < quantization.SMALLEST_TENSOR
            uncut = mode == "fsdp" and not quantization.has_rows(torch.Size(shape), quantization.BLOCK_SIZE)
            (kept if position in positions or small or uncut else others)[number].append(shape)
    return kept, others


def _scales_of(groups: Shapes, mode: str, world_size: int) -> int:
    """Bytes of the scales of tensors in 8 bits, on rank 0. Under ZeRO 1, 2 and 3 each group is one flat tensor."""
    if mode in ("zero1", "zero2", "zero3"):
        return sum(_scales(_elements([group], mode, world_size)) for group in groups)
    total = 0
    for shape in (shape for group in groups for shape in group):
        rows = _ceil(shape[0], world_size) if mode == "fsdp" else shape[0]
        where = quantization.layout(torch.Size((rows, *shape[1:])), quantization.BLOCK_SIZE)
        total += SCALES * where.rows * where.blocks
    return total


def _has_master(mode: str, precision: str) -> bool:
    return mode in ("zero1", "zero2", "zero3") or (mode == "zero0" and precision != "fp32")


def _elements(groups: Shapes, mode: str, world_size: int) -> int:
    """Elements of the state of rank 0, padding included."""
    if mode in ("zero1", "zero2"):
        flat = (sum(map(math.prod, group)) for group in groups)
        return sum(FLAT_ALIGNMENT * _ceil(numel, FLAT_ALIGNMENT * world_size) for numel in flat)
    shapes = [shape for group in groups for shape in group]
    if mode == "zero3":
        return sum(_ceil(math.prod(shape), world_size) for shape in shapes)
    if mode == "fsdp":
        return sum(_ceil(math.prod(shape[:1]), world_size) * math.prod(shape[1:]) for shape in shapes)
    return sum(map(math.prod, shapes))


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _checked(name: str, value: float) -> int:
    if isinstance(value, bool) or not 1 <= value <= LARGEST or value != int(value):
        raise ValueError(f"{name} must be a whole number from 1 to 1e15, got {value!r}")
    return int(value)
