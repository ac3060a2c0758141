"""The arguments of the CPU kernel in the form that kernel.c declares."""

import ctypes

import torch

from adopt_hf.algorithm import StepScalars

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # numbered as in kernel.c


class Scalars(ctypes.Structure):
    """Scalars of kernel.c: the numbers of a step."""

    _fields_ = tuple((name, ctypes.c_double) for name in StepScalars._fields)


class Row(ctypes.Structure):
    """Bucket of kernel.c: tensors that are updated with the same numbers."""

    _fields_ = (
        ("tensors", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("row_length", "param_type", "grad_type")),
        *((name, ctypes.c_int32) for name in ("bits", "block_size", "round_param")),
        ("scalars", Scalars),
    )


def declared(library: ctypes.CDLL, name: str = "adopt_step") -> ctypes.CDLL:
    """Return the library, with the arguments of its function `name` declared: the rows, their number, the threads."""
    function = getattr(library, name)
    function.argtypes = (ctypes.POINTER(Row), ctypes.c_int64, ctypes.c_int64)
    function.restype = None
    return library
