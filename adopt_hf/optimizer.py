"""The optimizer: torch's interface, its hyperparameters, the dispatch of a step to backends, and loading."""

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from types import ModuleType
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from adopt_hf import algorithm, backends
from adopt_hf.backends import capture
from adopt_hf.distributed.flat import Partition
from adopt_hf.hyperparameters import DEFAULTS, INSTEAD, OF_ADOPTW, check_group, keep_running_mean
from adopt_hf.plan import entries
from adopt_hf.plan.build import Kept
from adopt_hf.state import formats, loading, saved_groups


class ADOPT(Optimizer):
    """ADOPT (Taniguchi et al., NeurIPS 2024, arXiv 2411.02853, Algorithm 2): Adam that converges with any beta2.

    The equations are those of `adopt_hf.algorithm`. `step()` changes parameters and state in place, not the gradients.

    Args:
        params: parameters, (name, parameter) pairs or param groups; real or complex, of any floating dtype, on any
            devices, plain tensors or DTensors. Gradients must be dense.
        lr: learning rate, >= 0; a float, or a one-element tensor.
        betas: (beta1, beta2), each in [0, 1); any sequence of two numbers.
        eps: >= 0, the lower bound of sqrt(v).
        weight_decay: >= 0; added to the gradient as L2 (the authors' default), or, with `decouple`, as AdamW does.
        decouple: weight decay like AdamW's: theta*(1 - lr*weight_decay), from the second step on.
        clip_exp: the normalised gradient is clipped to +-t**clip_exp, t being the completed steps; None: not at all.
        beta2_warmup: use min(beta2, 1 - (t+1)**-k), a memory that grows with t; k in (0, 1], or True for the k that is
            measured best (`adopt_hf.hyperparameters.WARMUP_EXPONENT`). The param groups hold k, or False.
        maximize: ascend instead of descend.
        backend: "auto" (the fastest that can run), "reference", "foreach" or "fused". A load keeps it as it is here.
        capturable: keep `step`, and `lr` if it is a tensor, on the parameters' device and never wait for it, so that a
            CUDA graph can capture the step, after a few steps without. A load keeps it as it is here.
        state_bits: bits of a moment: 32, 16 (bfloat16) or 8 (codes in blocks, `adopt_hf.state.quantization`), the last
            two rounded stochastically. A load brings the saved state into the form that is asked for here. With 8,
            tensors of fewer than 4096 elements and those marked by `adopt_hf.keep_float32` keep 32.
        block_size: elements of a block of 8-bit moments: a power of two from 64 to 2048.
        bf16_stochastic_round: round bfloat16 parameters stochastically, so that updates below half of their last place
            are not lost. Others are stored as ever.
        seed: of all stochastic rounding; >= 0. Processes that hold the same parameter must have the same.
        float32_apart: with 8-bit moments, the tensors that keep float32 ones get param groups of their own, with
            state_bits=32. For ZeRO, which makes one flat tensor of a group; `optim="adopt_8bit"` does so.
        regroup: a function that takes `params` as a list and returns the list to use. `adopt_hf.trainer_kwargs` passes
            one if `optim_args` has to reach the param groups that a Trainer makes.

    State of a parameter, created at its first gradient: `step` (0-d float32 tensor, on the CPU unless `capturable`),
    `exp_avg` and `exp_avg_sq` (shape of the parameter; float32 for 16-bit parameters, else its dtype; bfloat16 with
    state_bits=16); with state_bits=8 in their place `exp_avg_codes` and `exp_avg_sq_codes` (shape of the parameter,
    uint8) and `scales` (float32, three for a block).

    Raises:
        ValueError: a hyperparameter outside its range.
        TypeError: an argument that ADOPT does not have; says what to write instead of another implementation's.
        RuntimeError: a `backend` asked for by name that cannot run on a parameter.
    """

    _is_adopt = True  # for `is_adopt_optimizer`

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = DEFAULTS["lr"],
        betas: tuple[float, float] = DEFAULTS["betas"],
        eps: float = DEFAULTS["eps"],
        weight_decay: float = DEFAULTS["weight_decay"],
        *,
        decouple: bool = False,
        clip_exp: float | None = DEFAULTS["clip_exp"],
        beta2_warmup: bool | float = False,
        maximize: bool = False,
        backend: str = "auto",
        capturable: bool = False,
        state_bits: int = 32,
        block_size: int = DEFAULTS["block_size"],
        bf16_stochastic_round: bool = False,
        seed: int = 0,
        float32_apart: bool = False,
        regroup: Callable[[list[Any]], list[Any]] | None = None,
        **unknown: object,
    ) -> None:
        for name in unknown:
            hint = INSTEAD.get(name)
            raise TypeError(f"ADOPT has no argument {name!r}" + (f": {hint}" if hint else ""))
        if callable(weight_decay):  # torch-adopt's fifth positional argument
            raise TypeError(
                f"weight_decay must be a number, got {weight_decay!r}; for a clip_lambda {INSTEAD['clip_lambda']}"
            )
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple": decouple,
            "clip_exp": clip_exp,
            "beta2_warmup": beta2_warmup,
            "maximize": maximize,
            "backend": backend,
            "capturable": capturable,
            "state_bits": state_bits,
            "block_size": block_size,
            "bf16_stochastic_round": bf16_stochastic_round,
            "seed": seed,
        }
        self.partitions: dict[Tensor, Partition] = {}
        if regroup is not None:
            params = regroup(list(params))
        self.kept_plans: Kept = {}  # of the last step, see `adopt_hf.plan.kept`; not in a pickle
        self.has_noted_first_steps = False  # whether `adopt_hf.first_steps` has seen all that it looks at
        super().__init__(params, defaults | check_group(defaults))
        if float32_apart:
            self.param_groups[:] = formats.float32_apart(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; hyperparameters that it does not name are the defaults given at construction.

        Raises:
            ValueError: a hyperparameter outside its range; nothing is added then.
            TypeError: a key that belongs to another implementation.
            RuntimeError: the `backend` asked for by name cannot run on one of the parameters.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        for name in INSTEAD.keys() & param_group.keys():
            raise TypeError(f"ADOPT has no param group option {name!r}: {INSTEAD[name]}")
        super().add_param_group(param_group | check_group(param_group))
        group = self.param_groups[-1]
        formats.note_marked(group)
        try:
            formats.check(group)
            backends.check(group)
        except (RuntimeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step with the gradients in `.grad`; parameters without one are left alone.

        Args:
            closure: recomputes the loss and the gradients; called once, with gradients enabled.

        Returns:
            What `closure` returned.

        Raises:
            RuntimeError: a gradient is sparse, or a CUDA graph captures the step without `capturable=True`; nothing has
                been changed then.
        """
        loss = None
        if closure is not None:
            capture.check(self.param_groups, self.state)
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _update(self, groups: Sequence[dict[str, Any]] | None = None, first: int = 0, key: Hashable = None) -> None:
        """Update all parameters that have a gradient, or those of `groups`, which are numbered from `first` on.

        Args:
            key: Under which the plan of `groups` is kept for the next call.
        """
        if not torch.compiler.is_compiling():
            _untraced().update(self, groups, first, key)
            return
        from adopt_hf.torch_compile import count_steps, plan_of, step_rounded

        plan: entries.Plan = plan_of(self, groups, first, key)
        entries.run(plan)
        if plan.rounded:
            step_rounded(plan.rounded)
        count_steps(plan)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether `torch.amp.GradScaler` leaves the scale and the overflow of the gradients to `step()`.

        It does where that saves waiting for the device. Otherwise it unscales and skips by itself: Accelerate looks for
        the step that was skipped, and the processes of FSDP1 agree on an overflow in `unscale_` alone.
        """
        return all(
            group["capturable"] and not any(getattr(p, "_fsdp_flattened", False) for p in group["params"])
            for group in self.param_groups
        )

    def set_partition(self, param: Tensor, partition: Partition) -> None:
        """Say that `param` is flat: it holds stretches of several tensors, which are counted one by one.

        Args:
            param: 1-d, of one of the param groups, now or when `step()` is called.
            partition: how it is made up.
        """
        self.partitions[param] = partition

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch calls this on every load as well as on unpickling; a pickle has no partitions.
        self.__dict__.setdefault("partitions", {})
        self.kept_plans = {}
        self.has_noted_first_steps = False
        self.defaults.pop("differentiable", None)  # torch puts it there
        for name, default in DEFAULTS.items():  # what a pickle of an earlier version lacks
            self.defaults.setdefault(name, default)
        for group in (self.defaults, *self.param_groups):
            keep_running_mean(group)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def state_dict(self) -> dict[str, Any]:
        """Return what torch's optimizers do, with plain numbers in the groups: `weights_only=True` reads no others."""
        saved = super().state_dict()
        groups = [{name: saved_groups.plain(value) for name, value in group.items()} for group in saved["param_groups"]]
        for group in groups:
            group["beta2_warmup"] = algorithm.warmup_exponent(group) or False  # a True that was written into the group
        return {**saved, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` returned: this optimizer's, an earlier version's, torch-adopt's or timm Adopt's.

        Moments of 16-bit parameters stay float32 (torch alone would cast them). How things are computed and stored
        (`backend`, `capturable`, `state_bits`, `block_size`, `bf16_stochastic_round`) is kept as it is here, and so is
        every hyperparameter that the saved group lacks, but `beta2_warmup`: a run without it goes on without. If both
        sides have `param_names`, parameters are paired by name and not by their order. A warning names the loaded
        hyperparameters that differ from those here, which they replace.

        Raises:
            ValueError: If the state is not ADOPT's or uses something that ADOPT here does not have, if a hyperparameter
                is outside its range, if names or shapes are not the parameters', or if a value cannot be that of a
                state (a step that is no count, a negative v). Nothing has been changed then.
        """
        loading.load(self, self.partitions, state_dict, super().load_state_dict)


class ADOPTW(ADOPT):
    """ADOPT with the defaults of those who come from AdamW: decoupled weight decay, and a memory that warms up.

    It is what `optim="adopt"` builds. `weight_decay` means what it means in AdamW, and the loss of a short run needs no
    other beta2: see `beta2_warmup` of ADOPT. A checkpoint of either class loads into the other, and brings its own
    `decouple` and `beta2_warmup` with it.

    Args: those of ADOPT, of which two have other defaults.
        decouple: as of ADOPT; True.
        beta2_warmup: as of ADOPT; True.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = DEFAULTS["lr"],
        betas: tuple[float, float] = DEFAULTS["betas"],
        eps: float = DEFAULTS["eps"],
        weight_decay: float = DEFAULTS["weight_decay"],
        *,
        decouple: bool = OF_ADOPTW["decouple"],
        beta2_warmup: bool | float = OF_ADOPTW["beta2_warmup"],
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decouple=decouple, beta2_warmup=beta2_warmup, **options)


@cache
def _untraced() -> ModuleType:
    """Return `adopt_hf.torch_compile`, which the first step imports. An import statement takes time in every step."""
    from adopt_hf import torch_compile

    return torch_compile


def is_adopt_optimizer(thing: object) -> bool:
    """Return whether `thing` is an ADOPT or its class, of this copy of the module or of another.

    A notebook or a test runner that imports the package again has two classes of that name, so that `isinstance` is not
    enough.
    """
    return getattr(thing, "_is_adopt", False) is True
