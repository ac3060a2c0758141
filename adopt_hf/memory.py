"""The bytes of optimizer state of a process, for `python -m adopt_hf memory`.

The optimizer state is the memory that only the optimizer needs and that grows with the model: the moments `exp_avg` and
`exp_avg_sq`, and in some modes a float32 copy of the weights, which the optimizer updates instead of the model's own
weights ("master weights"). The weights, the gradients and their buffers, and the step counts (4 bytes per tensor, in
CPU memory) are not counted.

    moments           2 x 4 bytes per element in every mode, because they are float32 for 16-bit parameters too.
                      state_bits=16: 2 x 2 bytes. state_bits=8: 2 x 1 byte, and 12 bytes per block of 256, but 2 x 4
                      bytes for embeddings and for tensors of fewer than 4096 elements.
    master weights    4 bytes per element. ZeRO 1, 2 and 3: always, also a copy of float32 weights (ZeRO 3 intends to
                      share those, but compares a torch.device with a string). ZeRO 0: with 16-bit weights. DDP and
                      FSDP: never.

Elements of one process, if W processes share the state, as in DeepSpeed 0.19 and FSDP2:

    DDP, ZeRO 0    all elements
    ZeRO 1, 2      each param group becomes one flat tensor, padded to a multiple of 2 W, and cut into W equal parts
    ZeRO 3         each tensor becomes flat, is padded to a multiple of W, and cut into W equal parts
    FSDP2          each tensor is cut between its rows, into parts of ceil(rows / W); the last are smaller or empty
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.memory_models import Model, nearest
from adopt_hf.state import quantization

MODES = {  # name -> title
    "ddp": "DDP",
    "fsdp": "FSDP",
    "zero0": "ZeRO 0",
    "zero1": "ZeRO 1",
    "zero2": "ZeRO 2",
    "zero3": "ZeRO 3",
}
WHOLE = ("ddp", "zero0")  # every process keeps the whole state
PRECISIONS = ("fp32", "bf16", "fp16")
OFFLOAD = (None, "optimizer", "parameters")  # the parts that ZeRO keeps in CPU memory
LARGEST = 10**15  # parameters or processes; a larger number is a typing error

MOMENTS = {32: 8, 16: 4, 8: 2}  # state_bits -> bytes per element of exp_avg and exp_avg_sq
SCALES = 12  # bytes per block of 8-bit moments
MASTER = 4  # bytes per element
FLAT_ALIGNMENT = 2  # elements per process, `nccl_start_alignment_factor` of ZeRO 1 and 2

Shapes = Sequence[Sequence[Sequence[int]]]  # shapes of the tensors of each param group


@dataclass(frozen=True)
class Usage:
    """Bytes of optimizer state of one process. If processes differ, those of rank 0, which holds most."""

    moments: int  # exp_avg and exp_avg_sq
    master: int  # the float32 copy of the weights
    offloaded: bool  # whether it is in CPU memory (or on disk, with an nvme_path) instead of GPU memory

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
        params: Trained parameters of 16 or 32 bits, in one of three forms. The shapes of the tensors of each param
            group give the exact bytes: `[[p.shape for p in group["params"]] for group in optimizer.param_groups]`,
            before sharding. One of `memory_models.MODELS` has shapes as well. A number of elements ignores padding:
            `params / world_size` is rounded up, and `commands.memory.left_out` says what is missing.
        mode: "ddp" (every process keeps the whole state), "fsdp", "zero0", "zero1", "zero2" or "zero3". Default: "ddp".
        world_size: Processes that share the state: all data-parallel processes, or those of one replica under hybrid
            sharding. Default: 1.
        precision: Dtype of the weights, "fp32", "bf16" or "fp16", which only ZeRO 0 depends on. Default: "bf16".
        offload: None, "optimizer" (ZeRO 1, 2 and 3) or "parameters" (parameters too, ZeRO 3). Default: None.
        state_bits: Bits of each moment: 32, 16 or 8. With 8, embeddings and small tensors keep 32. For a number of
            elements their share is that of the model in `memory_models.MODELS` with the nearest number. Default: 32.
        float32: Positions of the embeddings in each param group, necessary for shapes with state_bits=8:
            `[group.get("float32_state", ()) for group in optimizer.param_groups]`. Default: None.

    Raises:
        ValueError: If a value or a combination is not allowed. The message names the allowed ones.
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
    """Return the bytes of the scales of one flat tensor."""
    return SCALES * _ceil(elements, quantization.BLOCK_SIZE)


def _apart(
    groups: Shapes, float32: Sequence[Sequence[int]], mode: str
) -> tuple[list[list[Sequence[int]]], list[list[Sequence[int]]]]:
    """Return the groups of tensors with float32 moments, and of all others, as `formats.float32_apart` does."""
    kept: list[list[Sequence[int]]] = [[] for _ in groups]
    others: list[list[Sequence[int]]] = [[] for _ in groups]
    for number, (group, positions) in enumerate(zip(groups, float32, strict=True)):
        for position, shape in enumerate(group):
            small = math.prod(shape) < quantization.SMALLEST_TENSOR
            uncut = mode == "fsdp" and not quantization.has_rows(torch.Size(shape), quantization.BLOCK_SIZE)
            (kept if position in positions or small or uncut else others)[number].append(shape)
    return kept, others


def _scales_of(groups: Shapes, mode: str, world_size: int) -> int:
    """Return the bytes of the scales of 8-bit moments on rank 0. ZeRO 1, 2 and 3 make one flat tensor of a group."""
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
    """Return the elements of the state of rank 0, padding included."""
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
