"""The shapes are those of the models that they are named after."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from experiments.step.shapes import GPT2_TOY, SHAPES, elements, scaled


@pytest.mark.parametrize(
    ("name", "tensors", "total"),
    [
        ("flat-124m", 1, 124_439_808),
        ("gpt2-124m", 148, 124_439_808),
        ("gpt2-1.5b", 580, 1_557_611_200),
        ("flat-1b", 1, 1_000_000_000),
        ("lora-40m", 448, 39_976_960),
    ],
)
def test_totals(name: str, tensors: int, total: int) -> None:
    sizes = SHAPES[name].sizes
    assert (len(sizes), elements(sizes)) == (tensors, total)


def test_gpt2_by_arithmetic_is_transformers_gpt2() -> None:
    size = GPT2_TOY
    config = GPT2Config(
        n_layer=size.layers,
        n_embd=size.width,
        n_head=size.heads,
        vocab_size=size.vocabulary,
        n_positions=size.positions,
        bos_token_id=0,
        eos_token_id=0,
    )
    assert size.sizes() == [tuple(p.shape) for p in GPT2LMHeadModel(config).parameters()]


def test_scaled_keeps_the_number_of_tensors() -> None:
    assert scaled([(1000, 3), (2,), (50,)], 0.1) == [(100, 3), (1,), (5,)]
