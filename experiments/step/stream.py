"""The floor on a CPU: a kernel in C that moves the bytes of a step and only adds."""

import ctypes
from array import array
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
NAME = "stream"  # its key among the peers of a round


class Stream:
    """Tensors like those of an optimizer, and a step over them that takes `torch.get_num_threads()` threads.

    Raises:
        RuntimeError: If the kernel cannot be compiled here. The message says why.
    """

    def __init__(self, grads: list[Tensor]) -> None:
        """`grads`: float32 or bfloat16, on the CPU; only read."""
        from adopt_hf.backends.cpu import compiler  # and with it transformers: seconds that others need not wait

        self._step = compiler.load(SOURCE).stream_step
        self._step.argtypes = (ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)
        self._step.restype = None
        moments = [[torch.zeros_like(g, dtype=torch.float32) for g in grads] for _ in range(2)]
        self.tensors = [[g.clone() for g in grads], grads, *moments]
        self._elements = sum(g.numel() for g in grads)
        self._table = array("q", [0]) * (5 * len(grads))
        for column, tensors in enumerate(self.tensors):
            self._table[column::5] = array("q", [t.data_ptr() for t in tensors])
        self._table[4::5] = array("q", [g.numel() for g in grads])

    def step(self) -> None:
        """Read all, write all but the gradients."""
        grads = self.tensors[1]
        address = self._table.buffer_info()[0]
        is_16_bit = grads[0].element_size() == 2
        self._step(len(grads), address, is_16_bit, self._elements, torch.get_num_threads())
