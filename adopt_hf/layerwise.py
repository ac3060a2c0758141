"""ADOPT that updates each parameter as its gradient becomes ready, so that all gradients never exist at once."""

import weakref
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from adopt_hf.backends import capture
from adopt_hf.optimizer import ADOPT


class LayerwiseADOPT(ADOPT):
    """ADOPT whose work is done in `backward()`: a hook updates a parameter and lets its gradient go.

    The result is that of ADOPT with the same arguments, and so are its state and what a schedule does to `lr`. Peak
    memory lacks the gradients but for the largest few. What needs all gradients of a step at once cannot be had:
    accumulation over several calls of `backward()`, several processes and a GradScaler (errors), and clipping by their
    norm (there are none left to clip when `backward()` has ended). `step()` ends the step, and must be called after
    each `backward()`.

    Args: those of ADOPT.

    Raises, in `backward()`:
        RuntimeError: a parameter gets a second gradient before `step()`, or there are several processes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hooks: dict[Tensor, RemovableHandle] = {}
        self._done: set[Tensor] = set()  # since the last step()
        self._places: dict[Tensor, tuple[int, int, int]] = {}  # group, position in it, number among all
        super().__init__(*args, **kwargs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As ADOPT's; the parameters are updated in `backward()` from now on."""
        super().add_param_group(param_group)
        self._watch()

    def _watch(self) -> None:
        """Let hooks update all parameters that can have a gradient now."""
        optimizer = weakref.ref(self)  # the hooks live on the parameters, and must not keep the optimizer alive

        def update(p: Tensor) -> None:
            alive = optimizer()
            if alive is not None and p.grad is not None:
                alive._update_one(p)

        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad and p not in self._hooks:
                    self._hooks[p] = p.register_post_accumulate_grad_hook(update)

    def _place(self, p: Tensor) -> tuple[int, int, int]:
        index, position, _ = self._places.get(p, (0, 0, 0))
        params = self.param_groups[index]["params"]
        if p not in self._places or position >= len(params) or params[position] is not p:
            places = ((q, i, j) for i, group in enumerate(self.param_groups) for j, q in enumerate(group["params"]))
            self._places = {q: (i, j, n) for n, (q, i, j) in enumerate(places)}
            self.kept_plans = {q: plan for q, plan in self.kept_plans.items() if q in self._places}
        return self._places[p]

    @torch.no_grad()
    def _update_one(self, p: Tensor) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            if processes > 1:
                raise RuntimeError(
                    f"a layerwise ADOPT updates parameters before {processes} processes could agree on their "
                    "gradients: use ADOPT"
                )
        if p in self._done:
            p.grad = None
            raise RuntimeError(
                f"a parameter of shape {tuple(p.shape)} got a second gradient before step(): a layerwise ADOPT cannot "
                "accumulate gradients over several calls of backward(); use ADOPT, or a larger batch. After a "
                "backward() that was interrupted call the optimizer's zero_grad()"
            )
        index, position, number = self._place(p)
        group = self.param_groups[index]
        here = {"params": [p], "float32_state": [0] if position in group.get("float32_state", ()) else []}
        self._update([group | here], number, p)
        self._done.add(p)
        p.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, and that parameters have been updated by a `backward()` that was interrupted."""
        super().zero_grad(set_to_none)
        self._done.clear()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        raise RuntimeError(
            "a layerwise ADOPT has made its updates with the gradients of the scaled loss: use bfloat16 without a "
            "GradScaler, or ADOPT"
        )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """End the step, whose updates `backward()` has made; what has been unfrozen since is updated now.

        Args:
            closure: recomputes the loss and calls `backward()`.

        Returns:
            What `closure` returned.
        """
        loss = None
        if closure is not None:
            capture.check(self.param_groups, self.state)
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:  # it had no hook yet
                    self._update_one(p)
        self._watch()
        self._done.clear()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, empty in (("_hooks", {}), ("_done", set()), ("_places", {})):  # a pickle has none
            self.__dict__.setdefault(name, empty)
        self._watch()
