"""Importing this mends Triton's interpreter, if Triton is there, so that it does what GPUs do.

- It cuts bfloat16 off, where GPUs round to nearest, and reads subnormal bfloat16 wrongly.
- `multiple_of` and `max_constancy` are promises, by which the compiler makes wide loads and stores. The interpreter
  believes them; here a broken one is an AssertionError.
"""

from typing import Any

import numpy as np
import torch

try:
    from triton.runtime import interpreter
except ImportError:
    pass
else:
    converted = interpreter._convert_float
    set_attr = interpreter.TensorHandle.set_attr

    def as_gpus_do(x: Any, dtype: Any, wanted: Any, rounding_mode: Any) -> Any:
        if (dtype.name, wanted.name) == ("fp32", "bf16"):
            return torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()
        if (dtype.name, wanted.name) == ("bf16", "fp32"):
            return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return converted(x, dtype, wanted, rounding_mode)

    def verified(self: Any, name: str, values: Any) -> None:
        for dim, value in enumerate(values):
            data = self.data if self.data.ndim else self.data.reshape(1)
            if name == "tt.divisibility":  # of addresses, or numbers, at the begin of what is contiguous
                heads = data.take(0, axis=dim) if data.shape[dim] > 1 and value > 1 else data
                size = element_size(self.dtype)
                steps = np.diff(data.astype(np.int64), axis=dim)
                assert value == 1 or (steps == size).all(), f"multiple_of({values}) of what is not contiguous"
                assert (heads.astype(np.int64) % value == 0).all(), f"multiple_of({values}) does not hold of {heads}"
            elif name == "tt.constancy":
                groups = np.split(data, range(value, data.shape[dim], value), axis=dim)
                same = all((group == group.take([0], axis=dim)).all() for group in groups)
                assert same, f"max_constancy({values}) does not hold"
        set_attr(self, name, values)

    def element_size(dtype: Any) -> int:
        """Return the distance of neighbours: the bytes of an element for addresses, or 1 for numbers."""
        return dtype.element_ty.primitive_bitwidth // 8 if dtype.is_ptr() else 1

    interpreter._convert_float = as_gpus_do
    interpreter.TensorHandle.set_attr = verified
