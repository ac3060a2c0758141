"""The definition of ADOPT: the update, and the numbers of one step.

Source: Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate", NeurIPS 2024
(arXiv 2411.02853), Algorithm 2. Letters of the paper: theta parameter, g gradient, m first moment (`exp_avg`),
v second moment (`exp_avg_sq`), t steps completed so far (`step`).

    (1) g <- -g                     if maximize; beforehand g <- g / grad_scale under GradScaler
        g <- g + weight_decay*theta if weight_decay and not decouple
    (2) new <- (v == 0)                                         element by element: never observed
    (3) theta <- theta*(1 - lr*weight_decay)                    if decouple and t > 0
    (4) u <- clamp(g / max(sqrt(v), eps), -c_t, c_t), 0 where new, NaN where v is not finite
                                                                 c_t = t**clip_exp, inf if clip_exp is None
                                                                 sqrt(v) counts as 0 where v = least and eps > 0
    (5) m <- m + (1 - beta1)*(u - m)
    (6) theta <- theta - lr*m
    (7) v <- g*g where new, else beta2_t*v + (1 - beta2_t)*g*g   beta2_t = beta2, or min(beta2, 1 - (t+1)**-k)
                                                                 with beta2_warmup = k
        v <- least where v is now 0, unless new and g = 0        least: the smallest positive number of v's dtype
    (8) t <- t + 1                  unless t == 0 and the gradient is all zero: then nothing was observed, and
                                    nothing changes at all

If every first gradient is non-zero, the update is the paper's Algorithm 2. An element whose gradient has been exactly
zero so far starts at its first non-zero gradient.

An observed v can become 0: if beta2 = 0 and the gradient is zero, or if v or g*g underflows (0.1**45 in float32; |g|
below 3e-23). It is stored as `least`, which (4) treats as 0, so the element does not start again. Checkpoints of other
frameworks have no third moment that could tell the two zeros apart. With eps = 0 the root of `least` is used, because
0/0 would be NaN. In 16 and 8 bits an observed v does not become 0 either. It is stored as the smallest number of the
format, whose root is used.

"The gradient" of (8) is the incoming gradient, before (1). A framework that calls `step()` on zero gradients to
allocate state therefore changes nothing, also with coupled weight decay.

NaN and inf propagate to theta. A gradient that is inf, or whose square is inf (in float32 from 1.9e19 on), makes v inf,
and the element is NaN after the next step. With u = 0 the element would silently stop training.

With beta2_warmup v remembers about t**k steps. k = 1 is the running mean of all squares so far, and a smaller k forgets
sooner. The memory does not exceed that of beta2. k = 0.8 is the schedule of Adafactor (Shazeer and Stern 2018).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf.hyperparameters import WARMUP_EXPONENT, check_numbers, of_group


class StepScalars(NamedTuple):
    """The numbers of one step, which the equations (1) to (7) need in addition to the tensors.

    Disabled options are neutral values, so no backend needs to know steps, schedules or modes.
    """

    scale: float  # of the gradient: 1 / grad_scale, negative if maximize
    l2: float  # coupled weight decay, else 0
    decay: float  # 1 - lr*weight_decay if decoupled and t > 0, else 1
    eps: float
    clip: float  # c_t; inf: no clipping
    beta1: float
    beta2: float  # beta2_t
    lr: float

    def for_compiler(self) -> "StepScalars":
        """Return the same numbers, with 0-d float64 CPU tensors for numbers that can change from step to step.

        `torch.compile` recompiles for every new float, but not for a new value of a tensor. Schedules write lr,
        weight_decay and beta1 (OneCycleLR), and a GradScaler writes the scale. Disabled options stay floats.
        """
        neutral = {"scale": 1.0, "l2": 0.0}
        changing = ("scale", "l2", "decay", "clip", "beta1", "beta2", "lr")
        tensors: dict[str, Any] = {
            name: torch.tensor(getattr(self, name), dtype=torch.float64, device="cpu")
            for name in changing
            if getattr(self, name) != neutral.get(name)
        }
        return self._replace(**tensors)


def step_scalars(group: Mapping[str, Any], t: float, grad_scale: float = 1.0) -> StepScalars:
    """Return the numbers of the step that follows `t` completed steps.

    Args:
        group: Param group.
        t: Completed steps.
        grad_scale: Factor by which the gradients are too large, which a GradScaler applies to the loss. Default: 1.

    Raises:
        ValueError: If a number of the group is outside its range.
    """
    lr = float(group["lr"])
    check_numbers(group)
    beta1, beta2 = group["betas"]
    weight_decay, decouple, warmup = group["weight_decay"], group["decouple"], warmup_exponent(group)
    return StepScalars(
        scale=(-1.0 if group["maximize"] else 1.0) / grad_scale,
        l2=0.0 if decouple else weight_decay,
        decay=1.0 - lr * weight_decay if decouple and t > 0 else 1.0,
        eps=group["eps"],
        clip=math.inf if group["clip_exp"] is None else t ** group["clip_exp"],
        beta1=beta1,
        beta2=min(beta2, 1.0 - 1.0 / (t + 1.0) ** warmup) if warmup else beta2,
        lr=lr,
    )


def capturable_group_for_compiler(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a param group for `capturable_scalars` under `torch.compile`.

    The lr, the betas and a non-zero weight decay are tensors, for the reason given in `StepScalars.for_compiler`.
    """

    def changing(number: Any) -> Tensor:
        is_tensor = isinstance(number, Tensor)
        return number if is_tensor else torch.tensor(number, dtype=torch.float64, device="cpu")

    numbers = {name: value for name, value in group.items() if name in of_group("update")}
    numbers |= {"lr": changing(group["lr"]), "betas": tuple(map(changing, group["betas"]))}
    if group["weight_decay"] != 0:
        numbers["weight_decay"] = changing(group["weight_decay"])
    return numbers


def capturable_scalars(group: Mapping[str, Any], t: Tensor, grad_scale: Tensor | None) -> StepScalars:
    """Return the numbers of `step_scalars` as 0-d tensors, computed on the device of `t` without reading its value.

    The tensors are float64, or float32 if the device has no float64. In float32 the relative error of 1 - beta2 is up
    to 2**-24 / (1 - beta2).

    Args:
        group: Param group.
        t: Completed steps, 0-d tensor.
        grad_scale: Factor of a GradScaler, one-element tensor, or None for 1.
    """
    wide = widest_dtype(t.device)
    t, lr = t.to(wide), torch.as_tensor(group["lr"], dtype=wide, device=t.device).reshape(())
    beta1, beta2 = group["betas"]
    weight_decay, decouple, clip_exp = group["weight_decay"], group["decouple"], group["clip_exp"]
    warmup = warmup_exponent(group)
    sign = -1.0 if group["maximize"] else 1.0
    scalars: dict[str, Any] = {
        "scale": sign if grad_scale is None else sign / grad_scale.to(wide).reshape(()),
        "l2": 0.0 if decouple else weight_decay,
        "decay": torch.where(t > 0, 1.0 - lr * weight_decay, 1.0) if decouple else 1.0,
        "eps": group["eps"],
        "clip": torch.full_like(t, math.inf) if clip_exp is None else t**clip_exp,
        "beta1": beta1,
        "beta2": (1.0 - 1.0 / (t + 1.0) ** warmup).clamp(max=beta2) if warmup else beta2,
        "lr": lr,
    }
    return StepScalars(**scalars)


def warmup_exponent(group: Mapping[str, Any]) -> float:
    """Return the exponent k of a group's beta2_warmup, 0 if it has none."""
    warmup = group["beta2_warmup"]
    return WARMUP_EXPONENT if warmup is True else float(warmup)


def widest_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 for a device that has no float64: Apple's GPUs, and some of Intel's."""
    if device.type == "mps":
        return torch.float32
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float64


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the moments and of the arithmetic for parameters of `dtype`: at least single precision."""
    return {
        torch.bfloat16: torch.float32,
        torch.float16: torch.float32,
        torch.complex32: torch.complex64,
    }.get(dtype, dtype)


def least_of(dtype: torch.dtype) -> float:
    """Return the smallest positive number of a dtype, as which (7) stores an observed v of 0."""
    return torch.finfo(dtype).tiny * torch.finfo(dtype).eps


def update(
    param: Tensor,  # theta, any real shape and dtype
    grad: Tensor,  # g, of the same shape
    exp_avg: Tensor,  # m, of the same shape, of dtype state_dtype(param.dtype)
    exp_avg_sq: Tensor,  # v, as m
    s: StepScalars,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the new (theta, m, v) of one tensor, in the dtype of the moments, by equations (1) to (7)."""
    theta, g, m, v = param.to(exp_avg.dtype), grad.to(exp_avg.dtype), exp_avg, exp_avg_sq
    g = gradient(theta, g, s)
    new, least = v == 0, least_of(v.dtype)  # (2)
    theta = theta * s.decay  # (3)
    u = torch.clamp(normalised(g, v, s), -s.clip, s.clip)  # (4)
    u = torch.where(new, 0.0, u)
    u = torch.where(v.isfinite(), u, math.nan)
    m = m + (1 - s.beta1) * (u - m)  # (5)
    theta = theta - s.lr * m  # (6)
    v = torch.where(new, g * g, s.beta2 * v + (1 - s.beta2) * g * g)  # (7)
    v = torch.where((v == 0) & ~(new & (g == 0)), least, v)
    return theta, m, v


def gradient(theta: Tensor, grad: Tensor, s: StepScalars) -> Tensor:
    """Return the g of the equations (2) to (7) for a gradient that came in (1). Changes nothing."""
    g = grad
    if isinstance(s.scale, Tensor) or s.scale != 1:
        g = g * s.scale
    if isinstance(s.l2, Tensor) or s.l2 != 0:
        g = g + s.l2 * theta
    return g


def normalised(g: Tensor, v: Tensor, s: StepScalars) -> Tensor:
    """Return g / max(sqrt(v), eps) of (4), which is not clipped yet. Changes nothing."""
    least = least_of(v.dtype)
    root = torch.where(v == least, 0.0, v.sqrt()) if s.eps >= least else v.sqrt()
    return g / torch.clamp(root, min=s.eps)
