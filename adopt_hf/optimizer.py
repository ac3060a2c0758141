"""The optimizer classes ADOPT and ADOPTW, with the interface of `torch.optim`."""

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
from adopt_hf.hyperparameters import DEFAULTS, INSTEAD, OF_ADOPTW, check_group, refuse, upgrade
from adopt_hf.plan import entries
from adopt_hf.plan.build import Kept
from adopt_hf.state import formats, loading, saved_groups


class ADOPT(Optimizer):
    """ADOPT (Taniguchi et al., NeurIPS 2024, arXiv 2411.02853, Algorithm 2): Adam that converges with any beta2.

    The module `adopt_hf.algorithm` defines the equations. `step()` changes parameters and state in place, and only
    reads the gradients.

    The state of a parameter is created at its first gradient. It holds `step` (0-d float32 tensor, on the CPU unless
    `capturable`), `exp_avg` and `exp_avg_sq`. Both moments have the shape of the parameter. They are float32 for 16-bit
    parameters, bfloat16 with state_bits=16, and otherwise of the parameter's dtype. With state_bits=8 the state holds
    `exp_avg_codes` and `exp_avg_sq_codes` (uint8, shape of the parameter) and `scales` (float32, three per block)
    instead of the moments.

    Args:
        params: Parameters, (name, parameter) pairs or param groups. Parameters are real or complex, of any floating
            dtype, on any devices, plain tensors or DTensors. Gradients must be dense.
        lr: Learning rate, >= 0: a float or a one-element tensor. Default: 1e-3.
        betas: (beta1, beta2), each in [0, 1): any sequence of two numbers. Default: (0.9, 0.9999).
        eps: Lower bound of sqrt(v), >= 0. Default: 1e-6.
        weight_decay: Weight decay, >= 0. It is an L2 term of the gradient, or decoupled as in AdamW if `decouple` is
            True. Default: 0.
        decouple: Whether weight decay is decoupled: theta*(1 - lr*weight_decay), from the second step on. Default:
            False, as in the authors' code.
        clip_exp: Exponent of the clip of the normalised gradient, +-t**clip_exp after t completed steps. None disables
            the clip. Default: 0.25.
        beta2_warmup: Exponent k in (0, 1] of the warm-up min(beta2, 1 - (t+1)**-k), with which the memory of v grows
            with t. True stands for `adopt_hf.hyperparameters.WARMUP_EXPONENT`. Default: False.
        maximize: Whether to ascend instead of descend. Default: False.
        backend: "reference", "foreach", "fused", or "auto" for the fastest that can run. Default: "auto".
        capturable: Whether `step`, and `lr` if it is a tensor, are on the parameters' device, and the host never waits
            for the device. A CUDA graph can then capture the step, after a few steps without. Default: False.
        state_bits: Bits of a moment: 32, 16 (bfloat16) or 8 (codes in blocks, see `adopt_hf.state.quantization`).
            Moments of 16 and 8 bits are rounded stochastically. With 8, tensors of fewer than 4096 elements and tensors
            marked by `adopt_hf.keep_float32` keep 32. Default: 32.
        block_size: Elements of a block of 8-bit moments, a power of two from 64 to 2048. Default: 256.
        bf16_stochastic_round: Whether bfloat16 parameters are rounded stochastically, which keeps updates below half
            of their last place. Parameters of other dtypes are rounded to nearest. Default: False.
        seed: Seed of all stochastic rounding, >= 0. Processes that hold the same parameter need the same seed.
            Default: 0.
        float32_apart: Whether tensors that keep float32 moments with state_bits=8 get param groups of their own, with
            state_bits=32. ZeRO needs this, because it makes one flat tensor of a group. `optim="adopt_8bit"` sets it.
            Default: False.
        regroup: Function that takes `params` as a list and returns the list to use. `adopt_hf.trainer_kwargs` passes
            one if `optim_args` must reach the param groups that a Trainer makes. Default: None.

    Raises:
        ValueError: If a hyperparameter is outside its range.
        TypeError: If ADOPT does not have an argument. The message says what to write instead.
        RuntimeError: If the `backend` asked for by name cannot run on a parameter.
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
        decouple: bool = DEFAULTS["decouple"],
        clip_exp: float | None = DEFAULTS["clip_exp"],
        beta2_warmup: bool | float = DEFAULTS["beta2_warmup"],
        maximize: bool = DEFAULTS["maximize"],
        backend: str = DEFAULTS["backend"],
        capturable: bool = DEFAULTS["capturable"],
        state_bits: int = DEFAULTS["state_bits"],
        block_size: int = DEFAULTS["block_size"],
        bf16_stochastic_round: bool = DEFAULTS["bf16_stochastic_round"],
        seed: int = DEFAULTS["seed"],
        float32_apart: bool = False,
        regroup: Callable[[list[Any]], list[Any]] | None = None,
        **unknown: object,
    ) -> None:
        refuse("argument", unknown)
        if callable(weight_decay):  # torch-adopt's fifth positional argument
            raise TypeError(
                f"weight_decay must be a number, got {weight_decay!r}. For a clip_lambda, {INSTEAD['clip_lambda']}"
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
        self.names: dict[Tensor, str] = {}  # of parameters that are copies of the model's; not in a pickle
        if regroup is not None:
            params = regroup(list(params))
        self.monitor: Any = None  # an `adopt_hf.monitor.Monitor`; not in a pickle
        self.kept_plans: Kept = {}  # of the last steps, see `adopt_hf.plan.kept`; not in a pickle
        self.has_noted_first_steps = False  # whether `adopt_hf.first_steps` needs no more steps
        super().__init__(params, defaults | check_group(defaults))
        if float32_apart:
            self.param_groups[:] = formats.float32_apart(self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group.

        Args:
            param_group: Param group with the key `params`. Missing options get the values given at construction.

        Raises:
            ValueError: If a hyperparameter is outside its range.
            TypeError: If a key belongs to another implementation.
            RuntimeError: If the `backend` asked for by name cannot run on one of the parameters. Nothing is added then.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        refuse("param group option", INSTEAD.keys() & param_group.keys())
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
        """Do one step with the gradients in `.grad`. Parameters without a gradient stay unchanged.

        Args:
            closure: Function that recomputes the loss and the gradients. It is called once, with gradients enabled.

        Returns:
            The return value of `closure`, or None without a closure.

        Raises:
            RuntimeError: If a gradient is sparse, or a CUDA graph captures the step without `capturable=True`. Nothing
                has been changed then.
        """
        loss = None
        if closure is not None:
            capture.check(self.param_groups, self.state)
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    def _update(self, groups: Sequence[dict[str, Any]] | None = None, first: int = 0, key: Hashable = None) -> None:
        """Update all parameters that have a gradient.

        Args:
            groups: Param groups to update. Default: all.
            first: Number of their first parameter among all parameters. Default: 0.
            key: Key under which the plan of `groups` is kept for the next call. Default: None.
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

        With `capturable` this saves waiting for the device. Otherwise the GradScaler itself unscales and skips, for two
        reasons. Accelerate looks for the skipped step, and the ranks of FSDP1 agree on an overflow only in `unscale_`.
        """
        return all(
            group["capturable"] and not any(getattr(p, "_fsdp_flattened", False) for p in group["params"])
            for group in self.param_groups
        )

    def set_partition(self, param: Tensor, partition: Partition) -> None:
        """Declare that `param` is flat: it holds stretches of several tensors, whose steps are counted separately.

        Args:
            param: 1-d parameter that is in a param group, at the latest when `step()` is called.
            partition: The tensors that `param` holds, and their stretches.
        """
        self.partitions[param] = partition

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch calls __setstate__ in every load too, not only in unpickling. A pickle has no partitions.
        self.__dict__.setdefault("partitions", {})
        self.__dict__.setdefault("names", {})
        self.__dict__.setdefault("monitor", None)
        self.kept_plans = {}
        self.has_noted_first_steps = False
        self.defaults.pop("differentiable", None)  # torch adds it
        upgrade(self.defaults, self.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch's optimizers do.

        The groups hold only Python's own numbers, because `torch.load(weights_only=True)` reads no others.
        """
        saved = super().state_dict()
        groups = [{name: saved_groups.plain(value) for name, value in group.items()} for group in saved["param_groups"]]
        for group in groups:
            group["beta2_warmup"] = algorithm.warmup_exponent(group) or False  # the user may write True
        return {**saved, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict()` of this class, of an earlier version, of torch-adopt or of timm's Adopt.

        Moments of 16-bit parameters stay float32, although torch casts them. A load does not change the options that
        say how to compute and store (`backend`, `capturable`, `state_bits`, `block_size`, `bf16_stochastic_round`). The
        saved moments are converted to the format of this optimizer.
        A hyperparameter that the saved group lacks keeps its value here, except `beta2_warmup`: a run that had no
        warm-up goes on without one. If both sides have `param_names`, parameters are paired by name instead of by
        order. A warning names the loaded hyperparameters that differ from the values here, which they replace.

        Args:
            state_dict: The saved state.

        Raises:
            ValueError: If the state is not ADOPT's or uses an option that this ADOPT does not have. If a hyperparameter
                is outside its range, or names or shapes differ from the parameters'. If a value cannot be one of a
                state, such as a negative v. Nothing has been changed then.
        """
        if self.monitor is not None:
            self.monitor.settle()
        loading.load(self, self.partitions, state_dict, super().load_state_dict)


class ADOPTW(ADOPT):
    """ADOPT with defaults for users of AdamW: decoupled weight decay, and a warm-up of beta2.

    `optim="adopt"` builds this class. `weight_decay` means the same as in AdamW, and short runs need no smaller beta2
    (see `beta2_warmup` of ADOPT). A checkpoint of either class loads into the other, and brings its own `decouple` and
    `beta2_warmup`.

    Args:
        params: As in ADOPT, as are `lr`, `betas`, `eps` and `weight_decay`.
        decouple: As in ADOPT. Default: True.
        beta2_warmup: As in ADOPT. Default: True.
        **options: The other arguments of ADOPT.
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
    """Return `adopt_hf.torch_compile`, which the first step imports. An import statement costs time in every step."""
    from adopt_hf import torch_compile

    return torch_compile
