"""Warn if ADOPT's first steps train nothing: without gradients, or if each optimizer makes only one step.

A first step only initialises the second moment. A loop that creates a new optimizer for every step therefore never
changes a parameter. Federated learning with one local step is an example.
"""

import logging
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

SHORT_LIVES = 3  # optimizers of one kind in a row that end after their first step, before a warning

logger = logging.getLogger("adopt_hf")


class Stepped(Protocol):
    """The part of a torch optimizer that this module reads."""

    param_groups: list[dict[str, Any]]
    state: Any


@dataclass
class _Life:
    """One optimizer: its steps, counted up to 2, and the kind of its parameters."""

    steps: int
    kind: Hashable


_lives: "weakref.WeakKeyDictionary[Stepped, _Life]" = weakref.WeakKeyDictionary()
_short_lives: dict[Hashable, int] = {}  # successive short lives, by kind
_warned: set[str] = set()


def note(optimizer: Stepped) -> bool:
    """Note a step that begins now. Return whether later steps need not be noted."""
    life = _lives.get(optimizer)
    if life is None:
        life = _begin(optimizer)
    if life.steps < 2:
        _check_gradients(optimizer)
        life.steps += 1
    return life.steps >= 2


def _begin(optimizer: Stepped) -> _Life:
    shapes = tuple(tuple(p.shape) for group in optimizer.param_groups for p in group["params"])
    kind = hash((type(optimizer), shapes))
    life = _lives[optimizer] = _Life(2 if optimizer.state else 0, kind)  # a loaded state is past its first step
    weakref.finalize(optimizer, _end, life).atexit = False
    if _short_lives.get(kind, 0) >= SHORT_LIVES and life.steps == 0:
        _warn(
            "short lives",
            "%d ADOPT optimizers in a row were deleted after their first step. A first step only initialises the "
            "second moment, so no parameter has changed. If each round creates an optimizer, as in federated learning, "
            "keep its state over the rounds (optimizer.state_dict()), or take more than one local step",
            _short_lives[kind],
        )
    return life


def _end(life: _Life) -> None:
    if life.steps == 1:
        _short_lives[life.kind] = _short_lives.get(life.kind, 0) + 1
    else:
        _short_lives.pop(life.kind, None)


def _check_gradients(optimizer: Stepped) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if parameters and not optimizer.state and all(p.grad is None for p in parameters):
        _warn(
            "no gradients",
            "step() was called, and none of the %d parameters of this ADOPT has or had a gradient, so nothing is "
            "trained. The optimizer does not hold the model's parameters if it was created before the model was loaded "
            "or moved from the meta device by to_empty(): create it afterwards. Otherwise backward() was not called",
            len(parameters),
        )


def _warn(what: str, text: str, *values: object) -> None:
    if what not in _warned:
        _warned.add(what)
        logger.warning(text, *values)
