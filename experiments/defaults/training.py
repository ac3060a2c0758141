"""The training of a task: several seeds at once (stacked.py), in a plain loop.

The loop does what a Trainer with these settings does: every seed has an order of the data of its own, the learning rate
follows a schedule, the norm of each seed's gradient is clipped, and only matrices decay. All seeds are evaluated on the
same held-out data, once, after the last step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from experiments.defaults import stacked

Named = dict[str, Tensor]
Batches = Iterator[tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. Its functions take weights whose first dimension is the seeds.

    Args:
        name: The short name, a part of file names.
        title: The title in tables.
        about: The model, the data and the steps, in a sentence.
        rates: The learning rates, AdamW's best first. That is the best mean of both AdamWs in the pilot, whose seeds
            are not those of the protocol.
        warmup: The steps during which the learning rate rises from 0.
        floor: The learning rate at the end, as a share of `rates`. With None it falls with 1/sqrt(step) instead.
        decay: The decoupled weight decay of the weights with two dimensions or more.
        clip: The largest norm of a seed's gradient, or None for no clipping.
        beta2: The beta2 of the ADOPTs. It is below the default in the runs that are long against the memory.
        together: The number of seeds that are trained at once, in one part.
        weights: A function from a seed to the weights that are trained.
        batches: A function from a seed to its batches, one a step, without end.
        loss: The training loss (seeds,).
        evaluate: The held-out loss (seeds,).
        ratio: A function from the name of a weight to the factor on its learning rate.
    """

    name: str
    title: str
    about: str
    seeds: int
    steps: int
    rates: tuple[float, ...]
    warmup: int = 0
    floor: float | None = 0.0
    decay: float = 0.0
    clip: float | None = None
    beta2: float = 0.9999
    together: int = 8
    weights: Callable[[int], Named]
    batches: Callable[[int], Batches]
    loss: Callable[..., Tensor]
    evaluate: Callable[[Named], Tensor]
    ratio: Callable[[str], float] = field(default=lambda name: 1.0)

    def rate(self, step: int, steps: int, warmup: int | None = None) -> float:
        """Return the factor on the learning rate of step `step`, which counts from 0, of `steps`."""
        warmup = self.warmup if warmup is None else warmup
        if step < warmup:
            return step / warmup
        if self.floor is None:
            return 1 / math.sqrt(step + 1)
        done = (step - warmup) / max(1, steps - warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def train(
    task: Task,
    seeds: Sequence[int],
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    lr: float,
    steps: int,
    warmup: int | None = None,
) -> list[float]:
    """Train these seeds and return their held-out losses, infinite where not finite.

    Args:
        make: A function from param groups with "lr" and "weight_decay" to an optimizer. All weights of a group lie in
            one tensor (seeds, numbers), because the optimizers work element by element.
        warmup: The warm-up instead of the task's.
    """
    weights = stacked.stack([task.weights(seed) for seed in seeds])
    kinds: dict[tuple[bool, float, bool], list[str]] = {}
    for name, weight in weights.items():  # the gradients of LoRA's A are zero once: ADOPT counts its steps from there
        kinds.setdefault((weight.dim() > 2, task.ratio(name), name.endswith("lora_A")), []).append(name)
    flats = [torch.cat([weights[name].flatten(1) for name in names], 1).requires_grad_() for names in kinds.values()]
    groups = [
        {"params": [flat], "lr": lr * ratio, "weight_decay": task.decay if matrix else 0.0}
        for flat, (matrix, ratio, _) in zip(flats, kinds, strict=True)
    ]
    shapes = {name: weight.shape for name, weight in weights.items()}
    del weights

    def views() -> Named:
        found: Named = {}
        for flat, names in zip(flats, kinds.values(), strict=True):
            parts = flat.split([shapes[name][1:].numel() for name in names], 1)
            found |= {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}
        return found

    optimizer = make(groups)
    streams = [task.batches(seed) for seed in seeds]
    for step in range(steps):
        factor = task.rate(step, steps, warmup)
        for group, (_, ratio, _) in zip(optimizer.param_groups, kinds, strict=True):
            group["lr"] = lr * ratio * factor
        batch = [torch.stack(parts) for parts in zip(*(next(stream) for stream in streams), strict=True)]
        task.loss(views(), *batch).sum().backward()
        if task.clip is not None:
            _clip([flat.grad for flat in flats if flat.grad is not None], task.clip)
        optimizer.step()
        for flat in flats:
            flat.grad = None
    with torch.no_grad():
        losses = task.evaluate({name: view.detach() for name, view in views().items()})
    return [loss if math.isfinite(loss) else math.inf for loss in losses.tolist()]


def _clip(gradients: Sequence[Tensor], largest: float) -> None:
    """Clip the norm of each seed's gradients, as torch.nn.utils.clip_grad_norm_ does."""
    norm = torch.stack([gradient.norm(dim=1) for gradient in gradients]).norm(dim=0)
    factor = (largest / (norm + 1e-6)).clamp_(max=1.0).unsqueeze(1)
    for gradient in gradients:
        gradient.mul_(factor)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shuffled(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Yield batches of indices below `count`, each index once an epoch. The incomplete batch at the end is left out."""
    generator = seeded(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count - count % batch].split(batch)
