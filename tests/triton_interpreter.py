"""Importing this mends Triton's interpreter, if Triton is there: it cuts bfloat16 off, where GPUs round to nearest."""

from typing import Any

import torch

try:
    from triton.runtime import interpreter
except ImportError:
    pass
else:
    cut_off = interpreter._convert_float

    def to_nearest(x: Any, dtype: Any, wanted: Any, rounding_mode: Any) -> Any:
        if (dtype.name, wanted.name) != ("fp32", "bf16"):
            return cut_off(x, dtype, wanted, rounding_mode)
        return torch.from_numpy(x).bfloat16().view(torch.uint16).numpy()

    interpreter._convert_float = to_nearest
