"""The problem on which the self-check runs the Triton kernel: tensors of one kind, and their gradients.

Tensor sizes are close to a block and a chunk. Addresses are aligned and unaligned, and one table holds many tensors.
The elements include zeros, subnormal numbers, inf and NaN.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adopt_hf.algorithm import state_dtype
from adopt_hf.backends.bucket import Memory
from adopt_hf.backends.dense import Columns
from adopt_hf.backends.triton import launch as triton
from adopt_hf.state import quantization
from adopt_hf.state.formats import Format

MANY = 150  # small tensors in one table


class Kind(NamedTuple):
    """The properties that the Triton kernel is compiled for."""

    param: torch.dtype
    grad: torch.dtype
    coupled: bool  # weight decay is added to the gradient
    capturable: bool
    format: Format
    clipped: bool = True  # only the capturable kernel depends on it

    def __str__(self) -> str:
        words = [f"parameters of {self.param}", f"gradients of {self.grad}"]
        words += [f"moments of {self.format.bits} bits"] if self.format.bits < 32 else []
        words += [f"blocks of {self.format.block_size}"] if self.format.bits == 8 else []
        words += ["stochastic rounding"] if self.format.round_param else []
        words += ["coupled weight decay"] if self.coupled else []
        words += ["capturable=True"] if self.capturable else []
        words += ["no clip"] if not self.clipped else []
        return ", ".join(words)


class Wrong(Exception):  # noqa: N818 - a finding of the check
    """A difference between a kernel's result and the definition's. The message names the element."""


GRADS = (0.0, -0.0, 1e-45, -1e-40, 1e-20, 1.0, 3e38, float("inf"), -float("inf"), float("nan"))
SQUARES = (0.0, 1e-45, 1e-41, 1e-38, 1.0, float("inf"), float("nan"))
SPECIAL = torch.tensor([(g, v) for v in SQUARES for g in GRADS], dtype=torch.float64, device="cpu")
GUARD, GUARDED = 40, 7  # elements behind each tensor, and their value


class Problem:
    """Tensors of one kind on a device. Each has its own memory, which ends with a guard."""

    def __init__(self, device: torch.device, kind: Kind, seed: int) -> None:
        self.device, self.kind = device, kind
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self.places = _places(kind)
        self.guarded: list[tuple[Tensor, int, int]] = []
        self.memory = Memory()  # of the bucket: the first step makes tables, and later ones use them
        self.begun = False
        drawn = [self._moments(shape) for shape, _ in self.places]
        self.params = self._put([self._normal(shape) for shape, _ in self.places], kind.param, 0)
        self.scales: list[Tensor] = []
        if kind.format.bits == 8:
            coded = [quantization.quantize(m, v, kind.format.block_size, i) for i, (m, v) in enumerate(drawn)]
            self.exp_avgs = self._put([q.exp_avg for q in coded], torch.uint8, 2)
            self.exp_avg_sqs = self._put([q.exp_avg_sq for q in coded], torch.uint8, 3)
            self.scales = [q.scales.to(device) for q in coded]
        else:
            dtype = torch.bfloat16 if kind.format.bits == 16 else state_dtype(kind.param)
            self.exp_avgs = self._put([m for m, _ in drawn], dtype, 2)
            self.exp_avg_sqs = self._put([v for _, v in drawn], dtype, 3)

    def grads(self) -> list[Tensor]:
        """Return new gradients at new addresses, as after `zero_grad(set_to_none=True)`."""
        drawn = []
        for shape, _ in self.places:
            g = self._normal(shape) * self._normal(shape).mul(3).exp2()
            for at in _special(g.numel()):
                g.view(-1)[at] = SPECIAL[:, 0].float()
            drawn.append(g)
        grads = self._put(drawn, self.kind.grad, 1)
        self.memory.grad_addresses = [g.data_ptr() for g in grads] if self.begun else None
        self.begun = True
        return grads

    def columns(self, grads: list[Tensor]) -> Columns:
        return self.params, grads, self.exp_avgs, self.exp_avg_sqs

    def check_guards(self) -> None:
        """Raise `Wrong` if the kernel has written to memory around a tensor."""
        for whole, first, end in self.guarded:
            for part in (whole[:first], whole[end:]):
                if not bool(part.eq(GUARDED).all()):
                    raise Wrong(f"memory next to a tensor of {end - first} elements was written")

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float32, device="cpu")

    def _moments(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        seen = torch.rand(shape, generator=self.generator, dtype=torch.float32, device="cpu") > 0.2
        m, v = self._normal(shape) * seen, self._normal(shape).square() * self._normal(shape).mul(5).exp2() * seen
        for at in _special(v.numel()):
            v.view(-1)[at] = SPECIAL[:, 1].float()
        return m, v

    def _put(self, values: Sequence[Tensor], dtype: torch.dtype, column: int) -> list[Tensor]:
        """Return copies on the device, each at its offset from an aligned address."""
        result = []
        for t, (shape, offsets) in zip(values, self.places, strict=True):
            first, n = offsets[column], t.numel()
            whole = torch.full((first + n + GUARD,), GUARDED, dtype=dtype, device=self.device)
            whole[first : first + n].copy_(t.reshape(-1).to(dtype))
            self.guarded.append((whole, first, first + n))
            result.append(whole[first : first + n].view(shape))
        return result


def _special(n: int) -> list[slice]:
    """Return the places of special numbers in a tensor of `n` elements: in its middle and at its end."""
    k = len(SPECIAL)
    return [slice(n // 2, n // 2 + k), slice(n - k, n)] if n > 4 * k else []


def _places(kind: Kind) -> list[tuple[tuple[int, ...], tuple[int, int, int, int]]]:
    """Return shapes, and the offsets of theta, g, m and v from an aligned address, in elements."""
    aligned = (0, 0, 0, 0)
    odd = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2, 2, 2, 2), (4, 4, 4, 4)]
    chunk, block = triton.lengths(kind.format)
    shapes: list[tuple[int, ...]] = [(0,), (), (7,), (block - 1,), (block,), (block + 1,)]
    shapes += [(chunk,), (chunk + 1,), (2 * chunk + block + 3,)]
    if kind.format.bits == 8:  # rows with and without a shorter last block
        shapes += [(3, block), (2, 2 * block + 4), (3, block // 2 + 5), (5, chunk // 4 + 2)]
    places = [(shape, aligned) for shape in shapes]
    places += [((block + 3,), offsets) for offsets in odd] + [((chunk + 4,), odd[-1])]
    many = MANY if kind.format.is_plain else MANY // 5  # the definition of rounded moments works tensor by tensor
    return places + [((1 + i % 5,), aligned) for i in range(many)]
