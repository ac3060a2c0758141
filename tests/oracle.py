"""ADOPT a second time, in plain Python floats, one number after another: shares no code with adopt_hf."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Settings:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.9999)
    eps: float = 1e-6
    weight_decay: float = 0.0
    decouple: bool = False
    clip_exp: float | None = 0.25
    beta2_warmup: bool | float = False  # False, or the exponent
    maximize: bool = False


@dataclass
class Oracle:
    """One tensor as a list of floats, with its state."""

    theta: list[float]
    settings: Settings
    m: list[float] = field(init=False)
    seen: list[bool] = field(init=False)  # which ADOPT has to tell by v
    v: list[float] = field(init=False)
    t: int = 0

    def __post_init__(self) -> None:
        self.m = [0.0] * len(self.theta)
        self.v = [0.0] * len(self.theta)
        self.seen = [False] * len(self.theta)

    def step(self, gradient: Sequence[float], lr: float | None = None) -> None:
        s = self.settings
        lr = s.lr if lr is None else lr
        if self.t == 0 and all(g == 0 for g in gradient):
            return
        beta1, beta2 = s.betas
        if s.beta2_warmup:
            beta2 = min(beta2, 1 - (self.t + 1) ** -float(s.beta2_warmup))
        bound = math.inf if s.clip_exp is None else self.t**s.clip_exp
        for i, raw in enumerate(gradient):
            g = -raw if s.maximize else raw
            if not s.decouple:
                g += s.weight_decay * self.theta[i]
            first = not self.seen[i]
            if s.decouple and self.t > 0:
                self.theta[i] -= lr * s.weight_decay * self.theta[i]
            u = 0.0 if first else max(-bound, min(bound, g / max(math.sqrt(self.v[i]), s.eps)))
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * u
            self.theta[i] -= lr * self.m[i]
            self.v[i] = g**2 if first else beta2 * self.v[i] + (1 - beta2) * g**2
            self.seen[i] = self.seen[i] or g != 0
        self.t += 1
