"""The floor's kernel passes over every element of every tensor once, whatever the threads."""

import pytest
import torch

from adopt_hf.backends.cpu import compiler
from experiments.step.stepper import DTYPES, gradients
from experiments.step.stream import SOURCE, Stream


@pytest.fixture(autouse=True)
def a_compiler() -> None:
    try:
        compiler.load(SOURCE)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_element_once(dtype: str, threads: int) -> None:
    before = torch.get_num_threads()
    grads = gradients([(7, 3), (1,), (1000,), (64, 65)], dtype, "cpu", seed=0)
    stream = Stream(grads)
    torch.set_num_threads(threads)
    try:
        stream.step()
    finally:
        torch.set_num_threads(before)
    for p, g, m, v in zip(*stream.tensors, strict=True):
        torch.testing.assert_close(m, g.float(), rtol=0, atol=0)
        torch.testing.assert_close(v, g.float(), rtol=0, atol=0)
        if dtype == "fp32":
            torch.testing.assert_close(p, 2 * g, rtol=0, atol=0)
        else:  # adds the bits
            assert torch.equal(p.view(torch.int16), 2 * g.view(torch.int16))
