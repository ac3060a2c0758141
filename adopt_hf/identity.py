"""Recognise an ADOPT: by itself, of another copy of the package, or in wrappers."""

from typing import Any


def is_adopt_optimizer(thing: object) -> bool:
    """Return whether `thing` is an ADOPT or its class, from this copy of the module or from another.

    A notebook or a test runner that imports the package again has two classes of that name, so `isinstance` is not
    enough.
    """
    return getattr(thing, "_is_adopt", False) is True


def innermost(optimizer: Any) -> Any:
    """Return the optimizer inside Accelerate's and other wrappers."""
    inner = getattr(optimizer, "optimizer", None)
    while not is_adopt_optimizer(optimizer) and inner is not None and inner is not optimizer:
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    return optimizer
