"""Models of the source of Python's standard library, as examples/gpt2_pretraining has it: GPT-2, and a perceptron."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.defaults import stacked
from experiments.defaults.training import Batches, Named, Task, seeded, shuffled
from experiments.paper import gpt2

VOCABULARY = 1024
HELD_OUT_BLOCKS = 256
WINDOW = 6


@functools.cache
def library() -> tuple[Tensor, Tensor]:
    """The recipe's tokens of the training and the held-out text, int64, a long line each."""
    from examples.gpt2_pretraining import arguments, data

    with gpt2.quiet():
        corpus = data.load(arguments.DataArguments(vocab_size=VOCABULARY, block_size=128), batch_size=1)
    found = [np.fromfile(split.path, split.dtype).astype(np.int64) for split in (corpus.train, corpus.validation)]
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def _blocks(width: int) -> tuple[Tensor, Tensor]:
    """Training blocks, and HELD_OUT_BLOCKS held-out ones, evenly spaced."""
    train, held_out = (tokens[: len(tokens) // width * width].view(-1, width) for tokens in library())
    chosen = torch.arange(HELD_OUT_BLOCKS) * len(held_out) // HELD_OUT_BLOCKS
    return train, held_out[chosen]


def _gpt2_weights(seed: int, width: int, tokens: int) -> Named:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_positions": tokens, "n_layer": 2, "n_head": 4, "n_embd": width}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _gpt2_batches(seed: int, tokens: int) -> Batches:
    train, _ = _blocks(tokens)
    for chosen in shuffled(len(train), 8, seed):
        yield (train[chosen],)


def _gpt2_evaluate(w: Named, tokens: int) -> Tensor:
    _, held_out = _blocks(tokens)
    seeds = len(w["transformer.wte.weight"])
    losses = [stacked.gpt2_loss(w, part.expand(seeds, -1, -1), heads=4) for part in held_out.split(32)]
    return torch.stack(losses).mean(0)


def gpt2_task(name: str, title: str, about: str, width: int, tokens: int, **settings: Any) -> Task:
    return Task(
        name=name,
        title=title,
        about=about,
        floor=0.1,
        decay=0.1,
        clip=1.0,
        weights=functools.partial(_gpt2_weights, width=width, tokens=tokens),
        batches=functools.partial(_gpt2_batches, tokens=tokens),
        loss=functools.partial(stacked.gpt2_loss, heads=4),
        evaluate=functools.partial(_gpt2_evaluate, tokens=tokens),
        **settings,
    )


def _window_weights(seed: int) -> Named:
    torch.manual_seed(seed)
    parts = {
        "embedding": torch.nn.Embedding(VOCABULARY, 16),
        "hidden": torch.nn.Linear(16 * WINDOW, 32),
        "head": torch.nn.Linear(32, VOCABULARY),
    }
    return {name: weight.detach() for name, weight in torch.nn.ModuleDict(parts).named_parameters()}


def _window_batches(seed: int) -> Batches:
    tokens, generator = library()[0], seeded(seed)
    around = torch.arange(WINDOW + 1)
    while True:
        rows = tokens[torch.randint(len(tokens) - WINDOW, (32, 1), generator=generator) + around]
        yield rows[:, :WINDOW], rows[:, WINDOW]


def _window_loss(w: Named, ids: Tensor, following: Tensor) -> Tensor:
    return stacked.cross_entropy(stacked.window(w, ids), following)


def _window_evaluate(w: Named) -> Tensor:
    rows, seeds = library()[1].unfold(0, WINDOW + 1, 11)[:4096], len(w["head.bias"])
    return _window_loss(w, rows[:, :WINDOW].expand(seeds, -1, -1), rows[:, WINDOW].expand(seeds, -1))


def window_task(name: str, title: str, about: str, **settings: Any) -> Task:
    return Task(
        name=name, title=title, about=about, seeds=8, warmup=100, floor=0.1, decay=0.1, clip=1.0,
        weights=_window_weights, batches=_window_batches, loss=_window_loss, evaluate=_window_evaluate, **settings,
    )  # fmt: skip
