"""How many bytes of optimizer state a process holds: `python -m adopt_hf memory`.

The optimizer state is what exists only for the sake of the optimizer and grows with the model: the moments `exp_avg`
and `exp_avg_sq`, and, where a mode makes one, the float32 copy of the weights that the optimizer updates in place of
the model's own ("master weights"). Not counted: the weights, the gradients and their buffers, and the step counts
(4 bytes a tensor, in the memory of the CPU).

    moments           2 x 4 bytes an element in every mode, since they are float32 for 16-bit parameters too; with
                      state_bits=16 2 x 2, with state_bits=8 2 x 1 and 12 bytes for a block of 256
    master weights    4 bytes an element: ZeRO 1, 2 and 3 always (float32 weights are copied as well; ZeRO 3 means to
                      share them, but compares a torch.device with a string); ZeRO 0 with 16-bit weights; DDP and
                      FSDP never

Elements of a process, of W that share the state, as DeepSpeed 0.19 and FSDP2 cut it:

    DDP, ZeRO 0    all of them
    ZeRO 1, 2      each param group is made one flat tensor, padded to a multiple of 2 W, and cut in W equal parts
    ZeRO 3         each tensor is made flat, padded to a multiple of W, and cut in W equal parts
    FSDP2          each tensor is cut between its rows, in parts of ceil(rows / W), the last of them smaller or empty
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException

from adopt_hf import quantization, storage
from adopt_hf.integrations.deepspeed import OFFLOAD

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
SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
LARGEST = 10**15  # parameters or processes; more is a slip of the finger

MOMENTS = {32: 8, 16: 4, 8: 2}  # state_bits -> bytes an element: exp_avg and exp_avg_sq
SCALES = 12  # bytes a block of 8-bit moments
MASTER = 4  # bytes an element
FLAT_ALIGNMENT = 2  # elements a process, `nccl_start_alignment_factor` of ZeRO 1 and 2

TABLE_PARAMS = ("124M", "1.5B", "7B", "13B", "70B")
TABLE_WORLD_SIZES = (8, 64, 256, 1024)

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
    params: float | Shapes,
    *,
    mode: str = "ddp",
    world_size: int = 1,
    precision: str = "bf16",
    offload: str | None = None,
    state_bits: int = 32,
) -> Usage:
    """The optimizer state of one process.

    Args:
        params: what is trained, of 16 or 32 bits: the shapes of its tensors, param group by param group
            (`[[p.shape for p in group["params"]] for group in optimizer.param_groups]`, before it is sharded), which
            gives the exact bytes; or the number of its elements, which leaves out padding: `params / world_size` is
            rounded up. `left_out(mode)` says what that can miss.
        mode: "ddp" (every process keeps all), "fsdp", "zero0", "zero1", "zero2" or "zero3".
        world_size: processes that share the state: the data-parallel ones; of hybrid sharding, those of one replica.
        precision: of the weights: "fp32", "bf16" or "fp16". It makes a difference to ZeRO 0 alone.
        offload: None, "optimizer" (ZeRO 1, 2, 3) or "parameters" (those too; ZeRO 3).
        state_bits: of each moment: 32, 16 or 8. With 8 only a number of elements is taken, all of them in 8 bits:
            embeddings and small tensors, which keep 32, cannot be told from shapes.

    Raises:
        ValueError: a value that is not allowed, or a combination that does not exist; says what is.
    """
    storage.OPTIONS["state_bits"].check("state_bits", state_bits)
    if state_bits == 8 and not isinstance(params, int | float):
        raise ValueError("state_bits=8 takes a number of parameters, got shapes, which do not say what is an embedding")
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
    if isinstance(params, int | float):
        count = _checked("params", params)
        elements = count if mode in WHOLE else _ceil(count, world_size)
    else:
        elements = _elements(params, mode, world_size)
    scales = SCALES * _ceil(elements, quantization.BLOCK_SIZE) if state_bits == 8 else 0
    return Usage(
        moments=MOMENTS[state_bits] * elements + scales,
        master=MASTER * elements if _has_master(mode, precision) else 0,
        offloaded=offload is not None,
    )


def left_out(mode: str, state_bits: int = 32) -> str:
    """What the bytes of a mere number of parameters leave out, in words."""
    element = MOMENTS[state_bits] + MASTER
    if mode in WHOLE:
        words = "Exact: every process keeps all of it."
    else:
        words = "Parameters / processes, rounded up. " + {
            "fsdp": "FSDP2 cuts each tensor between its rows: rank 0 holds less than one row of each tensor more.",
            "zero3": f"ZeRO pads each tensor: less than 1 element ({element} bytes) of each tensor more.",
        }.get(mode, f"ZeRO pads each param group: less than 2 elements ({2 * element} bytes) of each group more.")
    if state_bits == 8:
        small = quantization.SMALLEST_TENSOR
        words = words.replace("Exact: e", "E") + (
            f"\nIn 8 bits: blocks of {quantization.BLOCK_SIZE}, without the shorter ones that rows end with (less than "
            f"{SCALES} bytes a row more). Embeddings and tensors of fewer than {small} elements have {MOMENTS[32]} "
            "bytes an element, under FSDP2 also those of short rows."
        )
    return words


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


# -- the command -------------------------------------------------------------------------------------------------------


def parse_count(name: str, text: str) -> int:
    """A whole number from 1 to 1e15: "7e9", "7B", "1.5b", "124M", "124_000_000"; K, M, B, T are powers of 1000.

    Raises:
        ValueError: `text` is something else; one line that begins with `name`.
    """
    stripped = text.strip()
    factor = SUFFIXES.get(stripped[-1:].upper(), 1)
    try:
        number = Decimal(stripped if factor == 1 else stripped[:-1])
        allowed = number.is_finite() and 1 <= number * factor <= LARGEST and number * factor % 1 == 0
    except DecimalException:
        allowed = False
    if not allowed:
        raise ValueError(f"{name} must be a whole number from 1 to 1e15, like 7e9, 7B or 124M, got {text!r}")
    return int(number * factor)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `python -m adopt_hf memory` takes."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--params", metavar="N", help="parameters that are trained: 7e9, 7B, 124M")
    what.add_argument("--table", action="store_true", help="every mode, 124M to 70B parameters, in GitHub's markdown")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--zero", type=int, choices=(0, 1, 2, 3), help="stage of DeepSpeed's ZeRO")
    mode.add_argument("--fsdp", action="store_true", help="FSDP, fully sharded")
    parser.add_argument("--world-size", nargs="+", metavar="N", help="processes that share the state (default: 1)")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the weights (default: bf16)")
    parser.add_argument(
        "--state-bits", type=int, choices=sorted(MOMENTS), default=32, help="of each moment (default: 32)"
    )
    parser.add_argument("--offload", choices=[x for x in OFFLOAD if x], help="what ZeRO moves to the CPU")


def report(options: argparse.Namespace) -> str:
    """What `python -m adopt_hf memory` prints.

    Raises:
        ValueError: a value that is not allowed, or a combination that there is not; one line that says what is.
    """
    world_sizes = [parse_count("--world-size", text) for text in options.world_size or ()]
    mode = "fsdp" if options.fsdp else "ddp" if options.zero is None else f"zero{options.zero}"
    if not options.table:
        params = parse_count("--params", options.params)
        return summary(params, mode, world_sizes or [1], options.precision, options.offload, options.state_bits)
    if mode != "ddp" or options.offload is not None:
        raise ValueError("--table has every mode: leave out --zero, --fsdp and --offload")
    return table(options.precision, world_sizes or TABLE_WORLD_SIZES, options.state_bits)


def summary(
    params: int, mode: str, world_sizes: Sequence[int], precision: str, offload: str | None, state_bits: int = 32
) -> str:
    """The optimizer state of one process in one mode, one row a world size.

    Raises:
        ValueError: as `state_bytes`.
    """
    where = {None: "", "optimizer": ", optimizer offloaded", "parameters": ", parameters and optimizer offloaded"}
    rows: list[tuple[str, ...]] = [
        ("processes", "held by", "moments: GiB (bytes)", "fp32 weights: GiB (bytes)", "total: GiB (bytes)")
    ]
    for world_size in world_sizes:
        usage = state_bytes(
            params, mode=mode, world_size=world_size, precision=precision, offload=offload, state_bits=state_bits
        )
        sizes = (f"{_gib(size)} ({size:,})" for size in (usage.moments, usage.master, usage.total))
        rows.append((f"{world_size:,}", usage.held_by, *sizes))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    bits = "" if state_bits == 32 else f", moments in {state_bits} bits"
    title = f"Optimizer state of one process: {params:,} parameters, {MODES[mode]}, {precision}{where[offload]}{bits}."
    return "\n".join([title, "", *lines, "", left_out(mode, state_bits)])


def table(precision: str = "bf16", world_sizes: Sequence[int] = TABLE_WORLD_SIZES, state_bits: int = 32) -> str:
    """The optimizer state of one process in every mode, as a table in GitHub's markdown; equal modes share rows.

    Raises:
        ValueError: as `state_bytes`.
    """
    alike: dict[tuple[bool, tuple[tuple[Usage, ...], ...]], list[str]] = {}  # the numbers -> the modes
    for offload, modes in ((None, MODES), ("optimizer", ("zero1", "zero2", "zero3"))):
        for mode in modes:
            numbers = tuple(
                tuple(
                    state_bytes(
                        parse_count("", size),
                        mode=mode,
                        world_size=n,
                        precision=precision,
                        offload=offload,
                        state_bits=state_bits,
                    )
                    for size in TABLE_PARAMS
                )
                for n in world_sizes
            )
            alike.setdefault((mode in WHOLE, numbers), []).append(MODES[mode])

    head = ["mode", "processes", "held by", "moments, bytes", "fp32 weights, bytes"]
    head += [f"{size}, GiB" for size in TABLE_PARAMS]
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
    for (whole, numbers), names in alike.items():
        for n, usages in [("any", numbers[0])] if whole else zip(world_sizes, numbers, strict=True):
            part = "" if whole else f"/{n}"
            moments = f"{MOMENTS[state_bits] + (SCALES / quantization.BLOCK_SIZE if state_bits == 8 else 0):.3g}"
            per_element = [f"{moments}{part}", f"{MASTER}{part}" if usages[0].master else "0"]
            name = ", ".join(names) + (", offloaded" if usages[0].offloaded else "")
            lines.append([name, f"{n}", usages[0].held_by, *per_element, *(_gib(usage.total) for usage in usages)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _gib(size: int) -> str:
    """Bytes in GiB, to three digits."""
    gib = size / 2**30
    decimals = max(0, 2 - math.floor(math.log10(gib))) if gib else 0
    return f"{gib:,.{decimals}f}"
