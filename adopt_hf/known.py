"""Parameters as they were when a plan was made, and the comparison with what they are now.

The comparison runs in every step over every parameter. So it is made of C loops (`map`, `all`, `==` of lists), which
take a fraction of the time of Python's, and of as few calls a tensor as can be.
"""

from collections.abc import Iterable
from itertools import chain, compress
from operator import attrgetter, eq, is_, itemgetter
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Parameter

from adopt_hf import moments
from adopt_hf.sharding import local_real, needs_redistribution, sharding_of

gradient_of = attrgetter("grad")
dtype_of = attrgetter("dtype")
step_of = itemgetter("step")


class Column(NamedTuple):
    """The entries of one name in the states that have it."""

    name: str
    states: list[dict[str, Any]]
    tensors: list[Tensor]


class Known:
    """All parameters of a plan, with their gradients and states.

    Lists of what was compared are kept, and no gradients.

    Args:
        params: With or without a gradient.
        states: Of those that have one.
        eight_bits: Whether their moments are in 8 bits.

    Raises:
        RuntimeError: If a tensor shows no address, as on XLA devices.
    """

    def __init__(self, params: list[Tensor], states: list[dict[str, Any]], eight_bits: list[bool]) -> None:
        grads = list(map(gradient_of, params))
        self.params = params
        self.types = list(map(type, grads))
        self.has_grad = [grad is not None for grad in grads]
        self.states = states
        self.with_grad = list(compress(params, self.has_grad))
        self.moments = _columns(states, eight_bits)
        grads = list(compress(grads, self.has_grad))
        self.is_plain = all(type(p) in (Parameter, Tensor) and not p.is_complex() for p in self.with_grad) and all(
            type(t) is Tensor for t in chain(grads, *(column.tensors for column in self.moments))
        )
        self.shardings = [] if self.is_plain else list(map(sharding_of, self.with_grad))
        self.all_have_grad = len(grads) == len(params)
        thetas, grads, others = self._local(grads)
        self.thetas_are_contiguous = all(map(Tensor.is_contiguous, thetas))
        self.grads_are_contiguous = all(map(Tensor.is_contiguous, grads))
        self.addresses = list(map(Tensor.data_ptr, chain(thetas, others)))
        self.sizes = list(map(Tensor.size, thetas))
        self.strides = [] if self.thetas_are_contiguous else list(map(Tensor.stride, thetas))
        self.dtypes = list(map(dtype_of, grads))
        self.numels = list(map(Tensor.numel, grads))
        self.grad_strides = [] if self.grads_are_contiguous else list(map(Tensor.stride, grads))
        self.grad_is_neg = [] if self.grads_are_contiguous else list(map(Tensor.is_neg, grads))
        self.without_memory = list(map(Tensor.data_ptr, grads)).count(0)  # empty, or torch's tensors of zeros

    def gradients(self) -> tuple[list[Tensor], list[int], list[Tensor]] | None:
        """Return the local gradients, their addresses and the step counts, or None if anything else has changed.

        Raises:
            KeyError: If an entry of a state is gone.
            RuntimeError: If a gradient is sparse, and has no strides.
        """
        grads = list(map(gradient_of, self.params))
        if list(map(type, grads)) != self.types:
            return None
        grads = grads if self.all_have_grad else list(compress(grads, self.has_grad))
        steps = list(map(step_of, self.states))
        for name, states, tensors in self.moments:
            if not all(map(is_, map(itemgetter(name), states), tensors)):
                return None
        if not self.is_plain and (
            any(map(needs_redistribution, self.with_grad, grads))
            or list(map(sharding_of, self.with_grad)) != self.shardings
        ):
            return None
        thetas, grads, others = self._local(grads)
        if list(map(Tensor.data_ptr, chain(thetas, others))) != self.addresses or not self._have_layout(thetas, grads):
            return None
        addresses = list(map(Tensor.data_ptr, grads))
        return (grads, addresses, steps) if addresses.count(0) == self.without_memory else None

    def _have_layout(self, thetas: list[Tensor], grads: list[Tensor]) -> bool:
        """Return whether parameters and gradients have the layout that they had; those of moments are known.

        torch sees to it that a gradient has the shape, the dtype (unless told otherwise) and the device of its
        parameter. Sizes and strides are compared one after the other: hundreds of tuples at a time would set off
        Python's garbage collector.
        """
        return (
            list(map(dtype_of, grads)) == self.dtypes
            and list(map(Tensor.numel, grads)) == self.numels
            and all(map(eq, map(Tensor.size, thetas), self.sizes))
            and all(map(Tensor.is_contiguous, thetas) if self.thetas_are_contiguous else _same(thetas, self.strides))
            and (
                all(map(Tensor.is_contiguous, grads))
                if self.grads_are_contiguous
                # The imaginary part of a conjugate, which has gaps, stands for its negative.
                else all(_same(grads, self.grad_strides)) and list(map(Tensor.is_neg, grads)) == self.grad_is_neg
            )
        )

    def _local(self, grads: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Iterable[Tensor]]:
        """Return parameters, gradients and all tensors of the moments as a kernel sees them."""
        others = chain.from_iterable(column.tensors for column in self.moments)
        if self.is_plain:
            return self.with_grad, grads, others
        return (
            list(map(local_real, self.with_grad)),
            list(map(local_real, map(Tensor.resolve_conj, grads))),
            map(local_real, others),
        )


def _same(tensors: list[Tensor], strides: list[tuple[int, ...]]) -> Iterable[bool]:
    return map(eq, map(Tensor.stride, tensors), strides)


def _columns(states: list[dict[str, Any]], eight_bits: list[bool]) -> list[Column]:
    """Return the moments, and where they are in 8 bits their scales."""
    floats = [state for state, eight in zip(states, eight_bits, strict=True) if not eight]
    codes = list(compress(states, eight_bits))
    named = [(name, floats) for name in moments.FLOATS if floats] + [(name, codes) for name in moments.CODES if codes]
    return [Column(name, those, [state[name] for state in those]) for name, those in named]
