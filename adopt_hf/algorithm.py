"""ADOPT, defined once: the update, and the numbers of one step.

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

Where every first gradient is non-zero this is the paper's Algorithm 2. An element whose gradient has been exactly zero
so far starts at its first non-zero gradient. An observed v can become 0: where beta2 = 0 meets a zero gradient, or
where v or g*g underflows (0.1**45 in float32; |g| below 3e-23). It is stored as `least`, which is 0 to (4), so that the
element does not start again. Checkpoints of other frameworks keep no third moment that could tell the two zeros apart.
With eps = 0 the root of `least` is used, since 0/0 would be NaN. In 16 and 8 bits an observed v does not become 0
either: it is stored as the smallest number that the format has there, whose root is used.
"The gradient" of (8) is the one that came in, before (1): a framework that calls `step()` on zero gradients to allocate
state leaves no trace under coupled weight decay either.
NaN and inf propagate to theta. A gradient that is inf, or so large that its square is (in float32 from 1.9e19 on),
makes v inf, and the element is NaN after the next step. With u = 0 it would stay where it is for ever, and nothing
would show.

With beta2_warmup v remembers about t**k steps: k = 1 is the running mean of all squares so far, a smaller k forgets
sooner, and the memory ends at that of beta2 (k = 0.8 is the schedule of Adafactor, Shazeer and Stern 2018).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf.hyperparameters import WARMUP_EXPONENT, check_numbers, of_group


class StepScalars(NamedTuple):
    """The numbers of one step: all that the equations (1) to (7) need beside the tensors.

    Switches that are off have become neutral values, so that no backend knows of steps, schedules or modes.
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
        """Return the same numbers, those that may change from step to step as 0-d float64 CPU tensors.

        `torch.compile` makes a new program for every new float, and none for a new value of a tensor. Schedules write
        lr, weight_decay and beta1 (OneCycleLR), a GradScaler the scale. What is switched off stays a number.
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
    """The numbers of the step that follows `t` completed ones, for a (checked) param group.

    Args:
        grad_scale: what the gradients are too large by: the factor of the loss under a GradScaler.

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
    """Return the numbers of a param group for `capturable_scalars`, for the reason of `StepScalars.for_compiler`.

    The lr, the betas and the weight decay, unless that is 0, are tensors.
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
    """As `step_scalars`, computed on the device of `t` (0-d) without a look at its value; 0-d tensors.

    They are float64, or float32 where the device has no float64: 1 - beta2 is then exact to 2**-24 / (1 - beta2) only.

    Args:
        grad_scale: one-element tensor, or None for 1.
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
    """The dtype of both moments, and of the arithmetic, for a parameter of `dtype`: at least single precision."""
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
    """Equations (1) to (7) for one tensor: the new (theta, m, v), all in the dtype of the moments. Changes nothing."""
    theta, g, m, v = param.to(exp_avg.dtype), grad.to(exp_avg.dtype), exp_avg, exp_avg_sq
    if isinstance(s.scale, Tensor) or s.scale != 1:  # (1)
        g = g * s.scale
    if isinstance(s.l2, Tensor) or s.l2 != 0:
        g = g + s.l2 * theta
    new, least = v == 0, least_of(v.dtype)  # (2)
    theta = theta * s.decay  # (3)
    root = torch.where(v == least, 0.0, v.sqrt()) if s.eps >= least else v.sqrt()  # (4)
    u = torch.clamp(g / torch.clamp(root, min=s.eps), -s.clip, s.clip)
    u = torch.where(new, 0.0, u)
    u = torch.where(v.isfinite(), u, math.nan)
    m = m + (1 - s.beta1) * (u - m)  # (5)
    theta = theta - s.lr * m  # (6)
    v = torch.where(new, g * g, s.beta2 * v + (1 - s.beta2) * g * g)  # (7)
    v = torch.where((v == 0) & ~(new & (g == 0)), least, v)
    return theta, m, v
