"""ADOPT that updates each parameter as its gradient becomes ready, so that all gradients never exist at once."""

import weakref
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from adopt_hf.optimizer import ADOPT


class LayerwiseADOPT(ADOPT):
    """ADOPT whose work is done in `backward()`: a hook updates a parameter and lets its gradient go.

    The result is that of ADOPT with the same arguments, and so are its state and what a schedule does to `lr`. Peak
    memory lacks the gradients but for the largest few. What needs all gradients of a step at once cannot be had:
    accumulation over several calls of `backward()`, clipping by their norm, a GradScaler, several processes. `step()`
    ends the step, and must be called after each `backward()`.

    Args: those of ADOPT.

    Raises, in `backward()`:
        RuntimeError: a parameter gets a second gradient before `step()`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hooks: dict[Tensor, RemovableHandle] = {}
        self._updated: set[Tensor] = set()
        super().__init__(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As ADOPT's; the parameters are updated in `backward()` from now on."""
        super().add_param_group(param_group)
        self._watch(self.param_groups[-1])

    def _watch(self, group: dict[str, Any]) -> None:
        optimizer = weakref.ref(self)  # the hooks live on the parameters, and must not keep the optimizer alive

        def update(p: Tensor) -> None:
            alive = optimizer()
            if alive is not None and p.grad is not None:
                alive._update(p)

        for p in group["params"]:
            if p.requires_grad and p not in self._hooks:
                self._hooks[p] = p.register_post_accumulate_grad_hook(update)

    def _update(self, p: Tensor) -> None:
        if p in self._updated:
            raise RuntimeError(
                f"a parameter of shape {tuple(p.shape)} got a second gradient before step(): a layerwise ADOPT cannot "
                "accumulate gradients over several calls of backward(); use ADOPT, or a larger batch"
            )
        super().step()
        self._updated.add(p)
        p.grad = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """End the step, whose updates `backward()` has made.

        Args:
            closure: recomputes the loss and calls `backward()`.

        Returns:
            What `closure` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._updated.clear()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_hooks", {})  # a pickle has none
        self.__dict__.setdefault("_updated", set())
        for group in self.param_groups:
            self._watch(group)
