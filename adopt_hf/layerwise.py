"""ADOPT that updates each parameter when its gradient is ready, so all gradients never exist at once."""

import gc
import inspect
import logging
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, overload

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.function import BackwardCFunction
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from adopt_hf.backends import capture
from adopt_hf.optimizer import ADOPT, ADOPTW

logger = logging.getLogger("adopt_hf")

# By id of the parameter. The owner holds its parameters, so an id stands for one tensor as long as the entry exists.
_owners: "weakref.WeakValueDictionary[int, LayerwiseADOPT]" = weakref.WeakValueDictionary()
warned: set[str] = set()


class LayerwiseADOPT(ADOPT):
    """ADOPT that works in `backward()`: a hook updates each parameter and frees its gradient.

    Results and state equal those of ADOPT with the same arguments, also under a schedule of `lr`. Peak memory contains
    only the largest few gradients. `step()` ends the step, and must be called after each `backward()`.

    Features that need all gradients of a step at once are not available. Accumulation over several calls of
    `backward()`, several processes and a GradScaler raise an error. Clipping by the norm finds no gradients after
    `backward()`.

    Every `backward()` that reaches a parameter updates it, also the `backward()` of another loss. A GAN's generator
    must freeze the discriminator (`requires_grad_(False)`) during its own `backward()`, and an actor its critic.
    Updates without a following `step()` raise an error at the next `zero_grad()` or `backward()`. A parameter that
    shares its memory with another tensor (`p.data` in the same graph, a `state_dict()` that the caller keeps) keeps its
    gradient, and is updated in `step()`.

    Args:
        *args: Positional arguments of ADOPT.
        **kwargs: Keyword arguments of ADOPT.

    Raises:
        RuntimeError: If a parameter belongs to another LayerwiseADOPT that is alive. In `backward()`: If a parameter
            gets a second gradient before `step()`, or if there are several processes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._hooks: dict[Tensor, RemovableHandle] = {}
        self._done: set[Tensor] = set()  # since the last step()
        self._is_running = False  # whether a backward() has begun to update parameters
        self._has_ended = False  # whether that backward() has ended, without a step() since
        self._is_released = False
        self._places: dict[Tensor, tuple[int, int, int]] = {}  # group, position in it, number among all
        try:
            super().__init__(*args, **kwargs)
        except Exception:
            self.release()
            raise

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group, see `ADOPT.add_param_group`. `backward()` updates its parameters from now on."""
        super().add_param_group(param_group)
        try:
            for p in self.param_groups[-1]["params"]:
                self._check_owner(p)
        except RuntimeError:
            self.param_groups.pop()
            raise
        self._watch()

    def release(self) -> None:
        """Release the parameters, so that another LayerwiseADOPT can take them. This one cannot step after that."""
        for p, hook in self._hooks.items():
            hook.remove()
            if _owners.get(id(p)) is self:
                del _owners[id(p)]
        self._hooks.clear()
        self._end_step()
        self._is_released = True

    def _check_owner(self, p: Tensor) -> None:
        if _owners.get(id(p), self) is not self:
            gc.collect()  # the owner may be garbage by now
        if _owners.get(id(p), self) is not self:
            raise RuntimeError(
                f"a parameter of shape {tuple(p.shape)} belongs to another LayerwiseADOPT, which updates it in "
                "backward(): call release() on that optimizer, or delete all references to it (del optimizer). For "
                "two models that share parameters create one LayerwiseADOPT with all of them, or use ADOPT"
            )

    def _watch(self) -> None:
        """Register hooks on all parameters that can have a gradient now."""
        optimizer = weakref.ref(self)  # hooks belong to parameters, and must not keep the optimizer alive

        def update(p: Tensor) -> None:
            alive = optimizer()
            # After torch.utils.swap_tensors the other tensor has the parameter's hook.
            if alive is not None and p.grad is not None and p in alive._hooks:
                alive._take(p)

        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad and p not in self._hooks and not is_lazy(p):
                    self._check_owner(p)
                    self._hooks[p] = p.register_post_accumulate_grad_hook(update)
                    _owners[id(p)] = self

    def _take(self, p: Tensor) -> None:
        """Use a gradient that has just become ready."""
        if self._has_ended and p not in self._done:
            p.grad = None
            raise RuntimeError(f"{_not_ended(len(self._done))} Call step() after each backward() of its own loss")
        if p not in self._done and _is_shared(p):
            if "shared" not in warned:
                warned.add("shared")
                logger.warning(
                    "Another tensor shares the memory of a parameter of shape %s (its .data in the same graph, or a "
                    "state_dict() that the caller keeps). LayerwiseADOPT updates such parameters in step() and "
                    "keeps their gradients until then, which takes memory.",
                    tuple(p.shape),
                )
            return
        if not self._is_running and not _is_nested():
            self._is_running = True
            optimizer = weakref.ref(self)

            def end() -> None:
                alive = optimizer()
                if alive is not None:
                    alive._is_running, alive._has_ended = False, bool(alive._done)

            Variable._execution_engine.queue_callback(end)  # is not called if backward() is interrupted
        self._update_one(p)

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
                    f"LayerwiseADOPT cannot run on {processes} processes, because it updates parameters before the "
                    "processes have exchanged gradients: use ADOPT"
                )
        if p in self._done:
            p.grad = None
            raise RuntimeError(
                f"a parameter of shape {tuple(p.shape)} got a second gradient before step(), and LayerwiseADOPT cannot "
                "accumulate gradients over several calls of backward(): use ADOPT, or a larger batch. If the first "
                "gradient came from another loss (a GAN's generator, an actor through its critic), set "
                "requires_grad_(False) on these parameters during that backward(). After an interrupted backward() "
                "call the optimizer's zero_grad()"
            )
        index, position, number = self._place(p)
        group = self.param_groups[index]
        here = {"params": [p], "float32_state": [0] if position in group.get("float32_state", ()) else []}
        self._update([group | here], number, p)
        self._done.add(p)
        p.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear gradients, and forget the updates of a `backward()` that was interrupted.

        Args:
            set_to_none: As in `torch.optim.Optimizer.zero_grad`. Default: True.

        Raises:
            RuntimeError: If a complete `backward()` has updated parameters and no `step()` has followed.
        """
        super().zero_grad(set_to_none)
        moved = len(self._done) if self._has_ended else 0
        self._end_step()
        if moved:
            raise RuntimeError(
                f"{_not_ended(moved)} These updates cannot be undone: load the earlier weights, and set "
                "requires_grad_(False) on these parameters during the backward() of another loss, or use ADOPT"
            )

    def _end_step(self) -> None:
        self._done.clear()
        self._is_running = self._has_ended = False

    @property
    def _step_supports_amp_scaling(self) -> bool:
        raise RuntimeError(
            "LayerwiseADOPT does not work with a GradScaler, because it has already made its updates with the "
            "gradients of the scaled loss: use bfloat16 without a GradScaler, or ADOPT"
        )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """End the step that `backward()` has made. Parameters that still have a gradient are updated now.

        Args:
            closure: Function that recomputes the loss and calls `backward()`.

        Returns:
            The return value of `closure`, or None without a closure.

        Raises:
            RuntimeError: If `release()` has been called.
        """
        if self._is_released:
            raise RuntimeError(
                "step() was called after release(), which has removed all parameters: create a new optimizer"
            )
        loss = None
        if closure is not None:
            capture.check(self.param_groups, self.state)
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:  # without a hook: newly unfrozen, swapped, or shared
                    self._update_one(p)
        self._watch()
        self._end_step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, empty in (("_hooks", {}), ("_done", set()), ("_places", {})):  # absent from a pickle
            self.__dict__.setdefault(name, empty)
        for name in ("_is_running", "_has_ended", "_is_released"):
            self.__dict__.setdefault(name, False)
        if not self._is_released:
            self._watch()


class LayerwiseADOPTW(LayerwiseADOPT, ADOPTW):
    """LayerwiseADOPT with the defaults of ADOPTW. `optim="adopt_layerwise"` builds this class."""


def _not_ended(moved: int) -> str:
    return (
        f"backward() has updated {moved} parameters of a LayerwiseADOPT, and no step() has followed. If that was the "
        "backward() of another loss (a GAN's generator, an actor through its critic), the parameters were updated "
        "with gradients of the wrong loss."
    )


def _is_nested() -> bool:
    """Return whether this backward() runs inside another one, as those of reentrant checkpoints do."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not BackwardCFunction.apply.__code__:
        frame = frame.f_back
    return frame is not None


def _is_shared(p: Tensor) -> bool:
    """Return whether another tensor uses the storage of `p`, such as one that the rest of the graph reads."""
    return _uses(p) > _uses_alone()


def _uses(t: Tensor) -> int:
    count = getattr(torch._C, "_storage_Use_Count", None)  # private: without it, shared storages are not noticed
    return 0 if count is None else int(count(t.untyped_storage()._cdata))


@cache
def _uses_alone() -> int:
    """Return the use count of a storage that only one tensor has: 1 in torch 2.6, and 2 in torch 2.13."""
    return _uses(torch.empty(1, dtype=torch.float32, device="cpu"))
