"""The shapes of the models of `python -m adopt_hf memory --model`.

Embeddings and small tensors keep float32 moments with `state_bits=8`, so the bytes depend on the shapes, and not only
on the number of parameters. The shapes are those of transformers' GPT2LMHeadModel and LlamaForCausalLM, in the param
groups of the Trainer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from adopt_hf.state import quantization

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """The trained tensors of a model in two param groups, decayed and undecayed."""

    title: str
    groups: tuple[tuple[Shape, ...], tuple[Shape, ...]]
    embeddings: tuple[tuple[int, ...], tuple[int, ...]]  # positions of the embeddings in the groups

    @cached_property
    def elements(self) -> int:
        """The number of parameters."""
        return sum(math.prod(shape) for group in self.groups for shape in group)

    @property
    def tensors(self) -> int:
        """The number of trained tensors."""
        return sum(map(len, self.groups))

    @cached_property
    def share_of_float32(self) -> float:
        """The share of parameters whose moments stay float32 with `state_bits=8`."""
        kept = sum(
            math.prod(shape)
            for group, positions in zip(self.groups, self.embeddings, strict=True)
            for position, shape in enumerate(group)
            if position in positions or math.prod(shape) < quantization.SMALLEST_TENSOR
        )
        return kept / self.elements


def gpt2(title: str, layers: int, width: int) -> Model:
    """Return a GPT-2, whose output layer is tied to its token embedding."""
    matrices = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    vectors = [(width,)] * 2 + [(3 * width,), (width,)] + [(width,)] * 2 + [(4 * width,), (width,)]
    decayed = ((50257, width), (1024, width), *matrices * layers)
    return Model(title, (decayed, (*vectors * layers, (width,), (width,))), ((0, 1), ()))


def llama(title: str, layers: int, width: int, hidden: int, vocabulary: int = 32000, key_width: int = 0) -> Model:
    """Return a Llama with a separate output layer. `key_width` is the width of keys that several heads share."""
    keys = key_width or width
    attention = [(width, width), (keys, width), (keys, width), (width, width)]
    matrices = [*attention, (hidden, width), (hidden, width), (width, hidden)]
    decayed = ((vocabulary, width), *matrices * layers, (vocabulary, width))
    return Model(title, (decayed, ((width,),) * (2 * layers + 1)), ((0,), ()))


MODELS = {
    "gpt2": gpt2("GPT-2 124M", layers=12, width=768),
    "gpt2-medium": gpt2("GPT-2 355M", layers=24, width=1024),
    "gpt2-large": gpt2("GPT-2 774M", layers=36, width=1280),
    "gpt2-xl": gpt2("GPT-2 1.5B", layers=48, width=1600),
    "llama-7b": llama("Llama 7B", layers=32, width=4096, hidden=11008),
    "llama-3-8b": llama("Llama 3 8B", layers=32, width=4096, hidden=14336, vocabulary=128256, key_width=1024),
    "llama-13b": llama("Llama 13B", layers=40, width=5120, hidden=13824),
    "llama-2-70b": llama("Llama 2 70B", layers=80, width=8192, hidden=28672, key_width=1024),
}


def nearest(count: int, models: Sequence[Model] = tuple(MODELS.values())) -> Model:
    """Return the model whose number of parameters has the ratio to `count` that is nearest to 1."""
    return min(models, key=lambda model: abs(math.log(model.elements / count)))
