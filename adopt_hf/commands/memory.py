"""Print a summary of optimizer state for `python -m adopt_hf memory`, and make the tables of the docs."""

import argparse
import math
from collections.abc import Sequence
from decimal import Decimal, DecimalException

from adopt_hf.memory import LARGEST, MASTER, MODES, MOMENTS, OFFLOAD, PRECISIONS, SCALES, WHOLE, Usage, state_bytes
from adopt_hf.memory_models import MODELS, Model, nearest
from adopt_hf.state import quantization
from adopt_hf.traffic import Added, added

SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
TABLE_PARAMS = ("124M", "1.5B", "7B", "13B", "70B")
TABLE_WORLD_SIZES = (8, 64, 256, 1024)


def parse_count(name: str, text: str) -> int:
    """Parse a whole number from 1 to 1e15: "7e9", "7B", "1.5b", "124M" or "124_000_000". K, M, B, T are powers of 1000.

    Raises:
        ValueError: If `text` is something else. The message is one line that begins with `name`.
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
    """Add the options of `python -m adopt_hf memory`."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--params", metavar="N", help="number of trained parameters, such as 7e9, 7B or 124M")
    what.add_argument("--model", choices=MODELS, help="model with known shapes; the bytes are exact, padding included")
    what.add_argument(
        "--table",
        action="store_true",
        help="print every mode for 124M to 70B parameters, as a table in GitHub's markdown",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--zero", type=int, choices=(0, 1, 2, 3), help="ZeRO stage of DeepSpeed")
    mode.add_argument("--fsdp", action="store_true", help="FSDP2, fully sharded")
    parser.add_argument(
        "--world-size", nargs="+", metavar="N", help="number of processes that share the state (default: 1)"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="bf16", help="precision of the weights (default: bf16)"
    )
    parser.add_argument(
        "--state-bits", type=int, choices=sorted(MOMENTS), default=32, help="bits of each moment (default: 32)"
    )
    parser.add_argument("--offload", choices=[x for x in OFFLOAD if x], help="what ZeRO keeps in CPU memory")


def main(options: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> None:
    """Print the report. If a value is not allowed, the exit code is 2."""
    try:
        print(report(options))
    except ValueError as error:
        parser.error(str(error))


def report(options: argparse.Namespace) -> str:
    """Return the output of `python -m adopt_hf memory`.

    Raises:
        ValueError: If a value is not allowed, or a combination is not possible. The message is one line that says what
            is.
    """
    world_sizes = [parse_count("--world-size", text) for text in options.world_size or ()]
    mode = "fsdp" if options.fsdp else "ddp" if options.zero is None else f"zero{options.zero}"
    if not options.table:
        params = MODELS[options.model] if options.model else parse_count("--params", options.params)
        return summary(params, mode, world_sizes or [1], options.precision, options.offload, options.state_bits)
    if mode != "ddp" or options.offload is not None:
        raise ValueError("--table prints every mode: remove --zero, --fsdp and --offload")
    world_sizes = world_sizes or list(TABLE_WORLD_SIZES)
    return f"{table(options.precision, world_sizes, options.state_bits)}\n\n{time_table(world_sizes)}"


def left_out(params: int, mode: str, state_bits: int = 32) -> str:
    """Return in words what the bytes leave out and assume if only the number of parameters is known."""
    element = MOMENTS[state_bits] + MASTER
    if mode in WHOLE:
        words = "Exact: every process keeps all of it."
    else:
        words = "Parameters / processes, rounded up. " + {
            "fsdp": "FSDP2 cuts each tensor between its rows: rank 0 holds less than one row of each tensor more.",
            "zero3": f"ZeRO pads each tensor: less than 1 element ({element} bytes) of each tensor more.",
        }.get(mode, f"ZeRO pads each param group: less than 2 elements ({2 * element} bytes) of each group more.")
    if state_bits == 8:
        like = nearest(params)
        words = words.replace("Exact: e", "E") + (
            f"\nAssumed: {100 * like.share_of_float32:.1f} % of the elements are in embeddings or in tensors of fewer "
            f"than {quantization.SMALLEST_TENSOR} elements, as in {like.title}, the known model of the nearest size. "
            f"These keep {MOMENTS[32]} bytes an element; the others have {MOMENTS[8]} and {SCALES} a block of "
            f"{quantization.BLOCK_SIZE}. `--model` counts the shapes of {', '.join(MODELS)}."
        )
    return words


def summary(
    params: int | Model,
    mode: str,
    world_sizes: Sequence[int],
    precision: str,
    offload: str | None,
    state_bits: int = 32,
) -> str:
    """Return the optimizer state of one process in one mode, with a row for each world size.

    Raises:
        ValueError: If `state_bytes` raises it.
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
    if isinstance(params, Model):
        what, note = f"{params.title} ({params.elements:,} parameters)", "From the shapes, padding included."
    else:
        what, note = f"{params:,} parameters", left_out(params, mode, state_bits)
    title = f"Optimizer state of one process: {what}, {MODES[mode]}, {precision}{where[offload]}{bits}."
    return "\n".join([title, "", *lines, "", note, time(params, mode, offload)])


def time(params: int | Model, mode: str, offload: str | None) -> str:
    """Return the sentence on what a step of ADOPT sends in addition to a step of AdamW."""
    model = params if isinstance(params, Model) else nearest(params)
    extra = added(model.tensors, mode, offload)
    if not extra.all_reduces:
        return "Time: a step sends nothing that a step of AdamW does not send."
    of = f"{model.tensors:,} trained tensors" + ("" if model is params else f", as in {model.title}")
    each = ", for each micro-batch" if added(1, mode, offload, 2) != added(1, mode, offload) else ""
    return (
        f"Time: a step sends one all-reduce of {extra.bytes:,} bytes more than a step of AdamW, on the CPU, with any "
        f"number of processes: a byte for each of {of}, and one more{each}."
    )


def table(precision: str = "bf16", world_sizes: Sequence[int] = TABLE_WORLD_SIZES, state_bits: int = 32) -> str:
    """Return the optimizer state of one process in every mode, as a table in GitHub's markdown. Equal modes share rows.

    Raises:
        ValueError: If `state_bytes` raises it.
    """
    sizes = [parse_count("", text) for text in TABLE_PARAMS]
    alike: dict[tuple[bool, tuple[tuple[Usage, ...], ...]], list[str]] = {}  # the numbers -> the modes
    for offload, modes in ((None, MODES), ("optimizer", ("zero1", "zero2", "zero3"))):
        for mode in modes:
            numbers = tuple(
                tuple(
                    state_bytes(
                        size, mode=mode, world_size=n, precision=precision, offload=offload, state_bits=state_bits
                    )
                    for size in sizes
                )
                for n in world_sizes
            )
            alike.setdefault((mode in WHOLE, numbers), []).append(MODES[mode])

    head = ["mode", "processes", "held by", "moments, bytes", "fp32 weights, bytes"]
    head += [f"{text}, GiB" for text in TABLE_PARAMS]
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
    for (whole, numbers), names in alike.items():
        for n, usages in [("any", numbers[0])] if whole else zip(world_sizes, numbers, strict=True):
            part = "" if whole else f"/{n}"
            each = sorted(
                usage.moments * (1 if whole else int(n)) / size for size, usage in zip(sizes, usages, strict=True)
            )
            low, high = f"{each[0]:.3g}", f"{each[-1]:.3g}"
            moments = low if low == high else f"({low} to {high})"
            per_element = [f"{moments}{part}", f"{MASTER}{part}" if usages[0].master else "0"]
            name = ", ".join(names) + (", offloaded" if usages[0].offloaded else "")
            lines.append([name, f"{n}", usages[0].held_by, *per_element, *(_gib(usage.total) for usage in usages)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def time_table(world_sizes: Sequence[int] = TABLE_WORLD_SIZES) -> str:
    """Return what a step of ADOPT adds to a step of AdamW in every mode, as a table in GitHub's markdown."""
    models = [nearest(parse_count("", text)) for text in TABLE_PARAMS]
    alike: dict[tuple[Added, ...], list[str]] = {}  # the numbers -> the modes
    for mode, title in MODES.items():
        alike.setdefault(tuple(added(model.tensors, mode) for model in models), []).append(title)
    head = ["time: added to a step of AdamW", "processes", "all-reduces", *(f"{text}, bytes" for text in TABLE_PARAMS)]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for extras, titles in alike.items():
        sizes = [f"{extra.bytes:,}" for extra in extras]
        lines.append([", ".join(titles), ", ".join(map(str, world_sizes)), str(extras[0].all_reduces), *sizes])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _gib(size: int) -> str:
    """Return bytes in GiB, with three digits."""
    gib = size / 2**30
    decimals = max(0, 2 - math.floor(math.log10(gib))) if gib else 0
    return f"{gib:,.{decimals}f}"
