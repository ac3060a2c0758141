"""The shapes of the parameters: those of real models, by arithmetic only."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Size = tuple[int, ...]


class Gpt2(NamedTuple):
    """A GPT-2 as transformers' GPT2LMHeadModel has it, its output layer tied to its token embedding."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 50257
    positions: int = 1024

    def sizes(self) -> list[Size]:
        """Return the sizes of its parameters, in the order of the model's."""
        d = self.width
        norm = [(d,), (d,)]
        attention = [(d, 3 * d), (3 * d,), (d, d), (d,)]
        mlp = [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
        return [
            (self.vocabulary, d),
            (self.positions, d),
            *(norm + attention + norm + mlp) * self.layers,
            *norm,
        ]


GPT2_124M = Gpt2(layers=12, width=768, heads=12)
GPT2_1_5B = Gpt2(layers=48, width=1600, heads=25)
GPT2_TOY = Gpt2(layers=2, width=32, heads=2, vocabulary=128, positions=64)


def lora(rank: int, layers: int, width: int, hidden: int) -> list[Size]:
    """Return the sizes of LoRA's A (rank, in) and B (out, rank) on the seven linear layers of each block of a Llama."""
    linear = [(width, width)] * 4 + [(width, hidden)] * 2 + [(hidden, width)]  # in, out
    return [size for into, out in linear for size in ((rank, into), (out, rank))] * layers


class Shape(NamedTuple):
    """A list of parameters to step over."""

    title: str
    sizes: list[Size]
    devices: tuple[str, ...]  # where it is measured unless shapes are named
    host_time: bool = False  # many small tensors: what the host does for them is measured too


SHAPES: dict[str, Shape] = {
    "flat-124m": Shape("one flat tensor of 124M, as ZeRO-Offload has", [(124_439_808,)], ("cpu",)),
    "gpt2-124m": Shape("GPT-2 124M", GPT2_124M.sizes(), ("cpu", "cuda")),
    "gpt2-1.5b": Shape("GPT-2 1.5B", GPT2_1_5B.sizes(), ("cuda",)),
    "flat-1b": Shape("a flat ZeRO partition of 1B", [(1_000_000_000,)], ("cuda",)),
    "lora-40m": Shape(
        "LoRA of rank 16 on a Llama 7B", lora(16, layers=32, width=4096, hidden=11008), ("cpu", "cuda"), host_time=True
    ),
    "small-2000": Shape("2,000 tensors of one element", [(1,)] * 2000, ("cpu", "cuda"), host_time=True),
}


def elements(sizes: Sequence[Size]) -> int:
    """Return the number of elements of parameters of these sizes together."""
    return sum(map(math.prod, sizes))


def scaled(sizes: Sequence[Size], scale: float) -> list[Size]:
    """Return as many sizes, each with about `scale` times the elements."""
    return [(max(1, round(first * scale)), *rest) for first, *rest in sizes]
