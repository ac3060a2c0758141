"""Buckets, the input of a backend: tensors that are updated with the same numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from adopt_hf.algorithm import StepScalars
from adopt_hf.state.formats import Format


@dataclass(slots=True)
class Memory:
    """Data that the buckets of successive steps share. Their parameters and moments are the same and have not moved.

    Their gradients can be new tensors of the same dtype, layout and device.
    """

    grad_addresses: list[int] | None = None  # in this step; None in the first step
    prepared: Any = None  # what the backend has prepared in the first step


class Bucket(NamedTuple):
    """Lists of real, strided tensors, one entry per parameter, all on one device and with the same numbers.

    All `params` have one dtype, and so have all `grads`. The moments have the dtype of `algorithm.state_dtype`. The
    four tensors of a parameter have one shape and any strides.
    """

    params: list[Tensor]  # theta, updated in place
    grads: list[Tensor]  # g, only read
    exp_avgs: list[Tensor]  # m, updated in place
    exp_avg_sqs: list[Tensor]  # v, updated in place
    scalars: StepScalars
    memory: Memory | None = None  # None: the bucket is used once


class CapturableBucket(NamedTuple):
    """A bucket whose numbers are on the device. No device waits for the host, so a CUDA graph can capture the step.

    Its backends also decide equation (8) on the device and count steps. If `found_inf` is not zero nothing changes.
    """

    params: list[Tensor]  # as in Bucket
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]  # t of each parameter, 0-d float32 on the device; updated in place
    group: Mapping[str, Any]  # the param group; `lr` is a float or a one-element tensor on the device
    grad_scale: Tensor | None  # of a GradScaler, as is found_inf: one-element float32 tensor on the device
    found_inf: Tensor | None
    agree: Callable[[Tensor], None] | None  # sums an int32 tensor over processes that share the parameters
    memory: Memory | None = None


class RoundedBucket(NamedTuple):
    """A bucket whose moments have fewer than 32 bits, or whose parameters are rounded stochastically."""

    params: list[Tensor]  # theta, real and strided; float32, bfloat16 or float16; updated in place
    grads: list[Tensor]  # g, only read
    exp_avgs: list[Tensor]  # m: float32, bfloat16 or, as uint8, the codes of `quantization`; contiguous
    exp_avg_sqs: list[Tensor]  # v, as m
    scales: list[Tensor]  # of the codes, (rows, blocks, 3) each, contiguous; empty without codes
    keys: list[int]  # keys of the random bits, one per parameter
    format: Format  # the same for all parameters
    scalars: StepScalars
    memory: Memory | None = None


def check_shapes(params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor]) -> None:
    """Check that a parameter, its gradient and its moments have one shape and device.

    Otherwise a kernel would write to other memory or pair the wrong elements, and torch's operations could broadcast.

    Raises:
        RuntimeError: If they differ. The message names the shapes and devices.
    """
    columns = (params, grads, exp_avgs, exp_avg_sqs)
    shapes = [[t.shape for t in column] for column in columns]
    devices = [[t.device for t in column] for column in columns]
    if shapes[0] == shapes[1] == shapes[2] == shapes[3] and devices[0] == devices[1] == devices[2] == devices[3]:
        return
    for four in zip(*columns, strict=True):
        if len({(t.shape, t.device) for t in four}) > 1:
            what = ", ".join(f"{tuple(t.shape)} on {t.device}" for t in four)
            raise RuntimeError(
                f"a parameter, its gradient, exp_avg and exp_avg_sq are {what}, and must have one shape and device. "
                "A parameter whose shape or device has changed needs a new state: delete the old one from "
                "optimizer.state, or create a new optimizer"
            )
