"""The parameters of a plan as they were when it was made, and the comparison with the present ones.

The comparison covers every parameter in every step. It therefore consists of C loops (`map`, `all`, `==` of lists),
which take a fraction of the time of Python's, and of as few calls per tensor as possible.
"""

from itertools import chain, compress
from operator import attrgetter, eq, is_, itemgetter
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from adopt_hf.distributed.sharding import local_real, needs_redistribution, sharding_of
from adopt_hf.state import conversion

gradient_of = attrgetter("grad")
dtype_of = attrgetter("dtype")
step_of = itemgetter("step")


class Column(NamedTuple):
    """The entries of one name in the states that have it, and the addresses of their local tensors."""

    name: str
    states: list[dict[str, Any]]
    tensors: list[Tensor]
    addresses: list[int]


class Known:
    """All parameters of a plan, with their gradients and states.

    The object keeps the compared properties of gradients, and no gradients.

    Args:
        params: All parameters, with or without a gradient.
        states: States of the parameters that have a gradient.
        eight_bits: Whether the moments have 8 bits, for each of `states`.

    Raises:
        RuntimeError: If a tensor has no address, as on XLA devices.
    """

    def __init__(self, params: list[Tensor], states: list[dict[str, Any]], eight_bits: list[bool]) -> None:
        of_all = list(map(gradient_of, params))
        self.params = params
        self.types = list(map(type, of_all))
        self.has_grad = [grad is not None for grad in of_all]
        self.all_have_grad = all(self.has_grad)
        self.states = states
        self.with_grad = list(compress(params, self.has_grad))
        grads = list(compress(of_all, self.has_grad))
        columns = _moments(states, eight_bits)
        self.is_plain = all(type(p) in (Parameter, Tensor) and not p.is_complex() for p in self.with_grad) and all(
            type(t) is Tensor for t in chain(grads, *(tensors for _, _, tensors in columns))
        )
        self.shardings = [] if self.is_plain else list(map(sharding_of, self.with_grad))
        thetas, grads = self._local(self.with_grad), self._local_gradients(grads)
        self.addresses = list(map(Tensor.data_ptr, thetas))
        self.sizes = list(map(Tensor.size, thetas))
        self.strides = None if all(map(Tensor.is_contiguous, thetas)) else list(map(Tensor.stride, thetas))
        self.without_memory = list(map(Tensor.data_ptr, grads)).count(0)  # empty ones, and torch's tensors of zeros
        self.dtypes = list(map(dtype_of, grads))
        self.numels = list(map(Tensor.numel, grads))
        self.grad_strides = None if all(map(Tensor.is_contiguous, grads)) else list(map(Tensor.stride, grads))
        self.grad_is_neg = list(map(Tensor.is_neg, grads))
        self.moments = [Column(*of, list(map(Tensor.data_ptr, self._local(of[2])))) for of in columns]

    def gradients(self) -> tuple[list[Tensor], list[int], list[Tensor]] | None:
        """Return the local gradients, their addresses and the step counts, or None if anything else has changed.

        The first access to an object waits for memory. Addresses are compared first, because reading them also fetches
        most of the other compared data.

        Raises:
            KeyError: If a state lacks an entry.
            RuntimeError: If a gradient is sparse and has no address.
        """
        thetas = self._local(self.with_grad)
        if list(map(Tensor.data_ptr, thetas)) != self.addresses or not self._have_shapes(thetas):
            return None
        grads = list(map(gradient_of, self.params))
        if list(map(type, grads)) != self.types:
            return None
        grads = grads if self.all_have_grad else list(compress(grads, self.has_grad))
        if not self.is_plain and (
            any(map(needs_redistribution, self.with_grad, grads))
            or list(map(sharding_of, self.with_grad)) != self.shardings
        ):
            return None
        grads = self._local_gradients(grads)
        addresses = list(map(Tensor.data_ptr, grads))
        if addresses.count(0) != self.without_memory or not self._have_layout(grads):
            return None
        for name, states, tensors, known in self.moments:
            if list(map(Tensor.data_ptr, self._local(tensors))) != known:
                return None
            if not all(map(is_, map(itemgetter(name), states), tensors)):
                return None
        return grads, addresses, list(map(step_of, self.states))

    def _have_shapes(self, thetas: list[Tensor]) -> bool:
        """Return whether the shapes and strides of parameters are unchanged. Those of moments are not compared.

        `map` makes one tuple at a time. Hundreds of live tuples would trigger Python's garbage collector.
        """
        return all(map(eq, map(Tensor.size, thetas), self.sizes)) and _have_strides(thetas, self.strides)

    def _have_layout(self, grads: list[Tensor]) -> bool:
        """Return whether the dtypes and the layout of gradients are unchanged.

        torch ensures that a gradient has the shape and the device of its parameter, and by default its dtype.
        """
        return (
            list(map(dtype_of, grads)) == self.dtypes
            and list(map(Tensor.numel, grads)) == self.numels
            and _have_strides(grads, self.grad_strides)
            # The imaginary part of a conjugate is lazily negated, and has gaps.
            and (self.grad_strides is None or list(map(Tensor.is_neg, grads)) == self.grad_is_neg)
        )

    def _local(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the tensors as a kernel reads them: local and real."""
        return tensors if self.is_plain else list(map(local_real, tensors))

    def _local_gradients(self, grads: list[Tensor]) -> list[Tensor]:
        return grads if self.is_plain else [local_real(grad.resolve_conj()) for grad in grads]


def _have_strides(tensors: list[Tensor], strides: list[tuple[int, ...]] | None) -> bool:
    """Return whether `tensors` have these strides, or are contiguous if `strides` is None."""
    if strides is None:
        return all(map(Tensor.is_contiguous, tensors))
    return all(map(eq, map(Tensor.stride, tensors), strides))


def _moments(
    states: list[dict[str, Any]], eight_bits: list[bool]
) -> list[tuple[str, list[dict[str, Any]], list[Tensor]]]:
    """Return the first three fields of each `Column`: of the moments, and of the scales of 8-bit moments."""
    floats = [state for state, eight in zip(states, eight_bits, strict=True) if not eight]
    codes = list(compress(states, eight_bits))
    named = [(name, floats) for name in conversion.FLOATS if floats] + [
        (name, codes) for name in conversion.CODES if codes
    ]
    return [(name, those, [state[name] for state in those]) for name, those in named]
