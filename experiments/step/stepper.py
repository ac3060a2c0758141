"""One optimizer with its own parameters and states, and the gradients that all share."""

import torch
from torch import Tensor

from experiments.step.peers import Peer, searching
from experiments.step.shapes import SHAPES, Size, scaled

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WARMUP = 2  # ADOPT's first step only initialises; heavyball compiles in its second


def sizes_of(shape: str, scale: float) -> list[Size]:
    """Return the sizes of the tensors of a row of `SHAPES`."""
    return scaled(SHAPES[shape].sizes, scale)


def gradients(sizes: list[Size], dtype: str, device: str, seed: int) -> list[Tensor]:
    """Return normally distributed gradients."""
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=DTYPES[dtype], device=device) for size in sizes]


def thinned(grad: Tensor, share: float) -> Tensor:
    """Return a copy in which about `share` of the elements are zero, always the same ones."""
    generator = torch.Generator(grad.device).manual_seed(0)
    return grad * (torch.rand(grad.shape, generator=generator, device=grad.device) >= share).to(grad.dtype)


class Stepper:
    """Steps of one peer."""

    def __init__(self, peer: Peer, grads: list[Tensor], peers_path: str | None) -> None:
        """`grads` are not copied, unless some elements are to be unobserved: no optimizer may change them."""
        self.grads = [thinned(g, peer.unobserved) for g in grads] if peer.unobserved else grads
        self.params: list[Tensor] = [torch.nn.Parameter(g.clone()) for g in grads]
        with searching(peers_path):
            self.optimizer = peer.make(self.params)

    def give_gradients(self) -> None:
        """Set the gradients before each step, because some optimizers remove them."""
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g

    def step(self) -> None:
        self.optimizer.step()
