"""Files written and read by Python for DeepSpeed's NVMe offload, where libaio is not installed or not built yet."""

import types
from pathlib import Path
from typing import Any, ClassVar

import torch


class Handle:
    """The methods of DeepSpeed's `aio_handle` that an optimizer on NVMe calls. Each is done when it returns."""

    pinned: ClassVar[set[int]] = set()  # the addresses of the buffers, of all handles as in DeepSpeed

    def __init__(self, **options: Any) -> None:
        self.done = 0

    def new_cpu_locked_tensor(self, length: int, like: torch.Tensor) -> torch.Tensor:
        tensor = torch.empty(length, dtype=like.dtype)
        self.pinned.add(tensor.untyped_storage().data_ptr())
        return tensor

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> None:
        self.pinned.discard(tensor.untyped_storage().data_ptr())

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        return tensor.numel() > 0 and tensor.untyped_storage().data_ptr() in self.pinned

    def async_pread(self, tensor: torch.Tensor, path: str, offset: int) -> int:
        if not Path(path).is_file():
            return -1
        saved = torch.from_file(path, size=tensor.numel(), dtype=tensor.dtype)  # fails if the file is shorter
        tensor.data.copy_(saved)
        self.done += 1
        return 0

    def async_pwrite(self, tensor: torch.Tensor, path: str, offset: int) -> int:
        tensor.detach().numpy().tofile(path)
        self.done += 1
        return 0

    def wait(self) -> int:
        done, self.done = self.done, 0
        return done


def stand_in() -> None:
    """Let DeepSpeed use `Handle` in this process."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    AsyncIOBuilder.load = lambda self, verbose=False: types.SimpleNamespace(aio_handle=Handle)


def of_installed(folder: str) -> None:
    """Let a changed copy of DeepSpeed use the extension of the installed one, in `folder`, and not build its own."""
    from deepspeed.ops.op_builder.builder import OpBuilder

    OpBuilder.deepspeed_src_path = lambda self, path: str(Path(folder, "ops", path))
