"""The update on an NVIDIA GPU, with one launch per bucket. The kernel finds the tensors in a table of addresses.

The kernels are in `kernels.py` and `rounded_kernels.py`. With TRITON_INTERPRET=1 they run slowly on CPU tensors, for
tests.
"""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import accumulate, chain, repeat
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars, warmup_exponent
from adopt_hf.backends.bucket import Bucket, CapturableBucket, RoundedBucket
from adopt_hf.backends.dense import are_same, dense, written
from adopt_hf.state.formats import Format
from adopt_hf.state.quantization import layout

OLDEST = (3, 6)  # Triton; earlier versions take subnormal numbers for zero in roots and quotients
LOWEST = (7, 5)  # compute capability that the kernels have been compiled for


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why `step` cannot update parameters of `dtype` on `device`, or None if it can. May import Triton."""
    if device.type not in ("cuda", "cpu"):
        return f"the Triton kernel takes no {device.type} tensors"
    if device.type == "cuda" and torch.version.hip is not None:
        return "the Triton kernel supports only NVIDIA GPUs, and this torch is built for ROCm"
    kernels = _kernels()
    if isinstance(kernels, str):
        return kernels
    if device.type == "cpu" and not kernels.INTERPRETED:
        return "the Triton kernel takes CPU tensors only under TRITON_INTERPRET=1"
    if device.type == "cuda" and kernels.INTERPRETED:
        return "the Triton kernel takes only CPU tensors under TRITON_INTERPRET=1"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LOWEST:
        return f"the Triton kernel needs a GPU of compute capability {'.'.join(map(str, LOWEST))} or higher"
    if dtype not in kernels.TYPES:
        return f"the Triton kernel takes parameters of {', '.join(map(str, kernels.TYPES))}"
    return None


def step(buckets: Sequence[Bucket]) -> None:
    """Update parameters and moments in place (equations (1) to (7)). Gradients are only read. One launch per bucket."""
    kernels = _loaded()
    for bucket in buckets:
        s = bucket.scalars
        with _on_device_of(bucket), _table(bucket) as table:
            if table.programs:
                types = [kernels.TYPES[column[0].dtype] for column in bucket[:3]]
                kernels.update[(table.programs,)](
                    table.rows, table.chunks, table.tensors, *_numbers(s), *types, s.l2 != 0, **kernels.OPTIONS
                )
        written(bucket.params)


def step_rounded(buckets: Sequence[RoundedBucket]) -> None:
    """Update buckets whose results are rounded to the bucket's format. One launch per bucket."""
    types = _loaded().TYPES
    from adopt_hf.backends.triton import rounded_kernels as kernels

    for bucket in buckets:
        s, (bits, block_size, round_param) = bucket.scalars, bucket.format
        block_size = block_size if bits == 8 else kernels.UNBLOCKED
        with _on_device_of(bucket), _table(bucket, bucket.scales, keys=bucket.keys, block_size=block_size) as table:
            if table.programs:
                kernels.update_rounded[(table.programs,)](
                    *(table.rows, table.chunks, table.tensors),
                    *_numbers(s),
                    *(types[column[0].dtype] for column in bucket[:2]),
                    *(s.l2 != 0, bits, block_size, round_param),
                    **kernels.options(block_size),
                )
        written(bucket.params)


def step_capturable(buckets: Sequence[CapturableBucket]) -> None:
    """Update buckets with equation (8), decided on the device. Three launches per bucket; the host does not wait."""
    kernels = _loaded()
    for bucket in buckets:
        group, steps, grad_scale, found_inf = bucket.group, bucket.steps, bucket.grad_scale, bucket.found_inf
        lr, clip_exp = group["lr"], group["clip_exp"]
        l2, decoupled = (0.0, group["weight_decay"]) if group["decouple"] else (group["weight_decay"], 0.0)
        numbers = (
            *((lr, 0.0) if isinstance(lr, Tensor) else (None, lr)),
            -1.0 if group["maximize"] else 1.0,
            l2,
            decoupled,
            group["eps"],
            0.0 if clip_exp is None else clip_exp,
            *group["betas"],
            warmup_exponent(group),
        )
        with _on_device_of(bucket), _table(bucket, steps) as table:
            types = [kernels.TYPES[column[0].dtype] for column in bucket[:3]]
            where = (table.rows, table.chunks, table.tensors, table.observed)
            if table.programs:
                kernels.observe[(table.programs,)](*where, types[1], **kernels.OPTIONS)
            if bucket.agree is not None:
                bucket.agree(table.observed)
            if table.programs:
                kernels.update_capturable[(table.programs,)](
                    *where, grad_scale, found_inf, *numbers, *types, l2 != 0, clip_exp is not None, **kernels.OPTIONS
                )
            blocks = -(-table.tensors // kernels.BLOCK.value)
            kernels.count[(blocks,)](table.rows, table.tensors, table.observed, found_inf, **kernels.OPTIONS)
        written(bucket.params)


@cache
def _kernels() -> ModuleType | str:
    """Return the module of the kernels, or why they cannot be used. Import Triton at most once per process."""
    try:
        import triton

        if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
            return f"the Triton kernel needs Triton {'.'.join(map(str, OLDEST))} or later, this is {triton.__version__}"
        from adopt_hf.backends.triton import kernels, rounded_kernels  # noqa: F401 - must be importable too
    except Exception as error:  # noqa: BLE001 - a broken installation raises anything
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    return kernels


def version() -> str:
    """Return Triton's version, or why it cannot be used."""
    kernels = _kernels()
    return kernels if isinstance(kernels, str) else str(kernels.triton.__version__)


def lengths(format: Format) -> tuple[int, int]:
    """Return the elements of a chunk and of a block of the kernel for tensors of this format."""
    kernels = _loaded()
    if format.is_plain:
        return kernels.CHUNK.value, kernels.BLOCK.value
    from adopt_hf.backends.triton import rounded_kernels

    return (
        rounded_kernels.CHUNK.value,
        format.block_size if format.bits == 8 else rounded_kernels.UNBLOCKED,
    )


def _loaded() -> ModuleType:
    kernels = _kernels()
    if isinstance(kernels, str):
        raise RuntimeError(kernels)
    return kernels


def _numbers(s: StepScalars) -> tuple[float, ...]:
    """Return the numbers of a step in the order of the kernels' arguments."""
    return s.scale, s.l2, s.decay, s.eps, s.clip, 1 - s.beta1, s.beta2, 1 - s.beta2, s.lr


def _on_device_of(bucket: Bucket | CapturableBucket | RoundedBucket) -> AbstractContextManager[object]:
    """Make the bucket's device current, because launches, copies and allocations use the current device."""
    device = bucket.params[0].device
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


# -- the tables -------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """The table of a bucket on its device, as `kernels` and `rounded_kernels` describe it."""

    tensors: int
    programs: int  # number of chunks
    rows: Tensor  # int64 of shape (7, tensors), or (9, tensors) for rounded results
    chunks: Tensor  # int32, one per chunk
    observed: Tensor  # int32, one per tensor; zero between steps
    changing: list[Sequence[int]]  # the present values of the rows that can change
    stream: int  # stream that uses the table

    def write(self, row: int, numbers: Sequence[int]) -> None:
        """Write a row on the device, without waiting for it, if the row has changed."""
        if numbers != self.changing[row]:
            self.rows[row].copy_(_host(array("q", numbers), self.rows.device), non_blocking=True)
            self.changing[row] = numbers


class Blocks(NamedTuple):
    """The division of tensors with rounded results into blocks, between rows and within rows."""

    size: int  # elements of a block; the last of a row can have fewer
    a_chunk: int  # blocks of a chunk
    columns: tuple[int, ...]  # elements of a row of each tensor

    @classmethod
    def of(cls, params: list[Tensor], block_size: int, is_coded: bool) -> "Blocks":
        """Return the blocks of a bucket. Without codes a tensor is one row."""
        from adopt_hf.backends.triton import rounded_kernels as kernels

        columns = tuple(layout(t.shape, block_size).columns if is_coded else t.numel() for t in params)
        return cls(block_size, kernels.CHUNK.value // block_size, columns)

    def chunks(self, sizes: tuple[int, ...]) -> list[int]:
        """Return the chunks of each tensor, given their numbers of elements."""
        rows = [n // columns if n else 0 for n, columns in zip(sizes, self.columns, strict=True)]
        blocks = [n * -(-columns // self.size) for n, columns in zip(rows, self.columns, strict=True)]
        return [-(-n // self.a_chunk) for n in blocks]


# Host buffers that captured graphs read on every replay. They are never freed, because nothing reports the end of a
# graph.
_captured: list[Tensor] = []


@contextmanager
def _table(
    bucket: Bucket | CapturableBucket | RoundedBucket,
    *more: list[Tensor],
    keys: Sequence[int] = (),
    block_size: int | None = None,
) -> Iterator[Table]:
    """Yield the table of a bucket, with the present addresses of its tensors: theta, g, m, v, and t or scales.

    The bucket's memory keeps the table for the next step, which copies only changed rows to the device. These are
    usually the addresses of the gradients, and the keys. Under capture the table belongs to the graph, which fills it
    at each replay.

    Args:
        bucket: The bucket.
        more: Further columns: t of a CapturableBucket, or the scales of a RoundedBucket.
        keys: Keys of a RoundedBucket. Default: none.
        block_size: Block size of a RoundedBucket. Default: None, for other buckets.
    """
    device, memory = bucket.params[0].device, bucket.memory
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    is_captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if memory is not None and not is_captured and memory.grad_addresses is not None and memory.prepared is not None:
        table: Table = memory.prepared
        if table.stream == stream:  # a kernel on another stream may still read it
            memory.prepared = None  # a failed step leaves no table
            table.write(1, memory.grad_addresses)
            if block_size is not None:
                table.write(5, keys)
            yield table
            memory.prepared = table
            return
    with dense(*bucket[:4], logically=block_size is not None) as columns:
        sizes = tuple(map(Tensor.numel, columns[0]))
        changing: list[Sequence[int]] = [list(map(Tensor.data_ptr, column)) for column in (*columns, *more)]
        blocks = None
        if block_size is not None:
            blocks = Blocks.of(bucket.params, block_size, is_coded=bool(bucket.exp_avgs[0].dtype == torch.uint8))
            changing[4:] = [changing[4] or [0] * len(sizes), keys]
        table, host = _new(sizes, changing, device, stream, blocks)
        if is_captured:
            _captured.append(host)
        yield table
        if memory is not None and not is_captured and are_same(columns, bucket[:4]):
            memory.prepared = table


def _new(
    sizes: tuple[int, ...],
    changing: list[Sequence[int]],
    device: torch.device,
    stream: int,
    blocks: Blocks | None = None,
) -> tuple[Table, Tensor]:
    """Return a new table, and the host memory that it is copied from."""
    chunk = _loaded().CHUNK.value
    chunks = [-(-size // chunk) for size in sizes] if blocks is None else blocks.chunks(sizes)
    tensors, programs = len(sizes), sum(chunks)
    first = accumulate(chunks[:-1], initial=0)
    rows = array("q", chain(*changing, *[repeat(0, tensors)] * (5 - len(changing)), sizes, first))
    rows.extend(blocks.columns if blocks is not None else ())
    count = len(rows) // tensors
    of_tensor = array("i", chain.from_iterable(map(repeat, range(tensors), chunks)))
    of_tensor.extend([0] * (tensors + (programs + tensors) % 2))  # `observed`, padded to whole words
    host = _host(array("q", rows.tobytes() + of_tensor.tobytes()), device)
    memory = host.to(device, non_blocking=True)
    halves = memory[count * tensors :].view(torch.int32)
    split = (halves[:programs], halves[programs : programs + tensors])
    return Table(tensors, programs, memory[: count * tensors].view(count, tensors), *split, changing, stream), host


def _host(numbers: "array[int]", device: torch.device) -> Tensor:
    """Return int64 host memory that the device copies asynchronously. torch does not reuse it before the copy ends."""
    host = torch.frombuffer(numbers, dtype=torch.int64)
    return host.pin_memory() if device.type == "cuda" else host
