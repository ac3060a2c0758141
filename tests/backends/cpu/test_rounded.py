"""8-bit steps of the compiled CPU kernel on blocks of every kind: all observed, some or none, zero again, not finite.

The kernel has a way of its own for each kind; the results are the definition's to the bit on every one. The same
without wide vectors is in test_native.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adopt_hf import ADOPT, backends

pytestmark = pytest.mark.skipif(
    backends.CPU.why_not(torch.device("cpu"), torch.float32) is not None,
    reason=f"{backends.CPU.why_not(torch.device('cpu'), torch.float32)}",
)

SHAPES = ((20, 300), (5001,), (70, 64), (40, 129))


def gradients(t: int, kind: str, dtype: torch.dtype) -> list[Tensor]:
    """Gradients of step t; what has been zero in all of them is not observed."""
    generator = torch.Generator().manual_seed(t)
    found = []
    for i, shape in enumerate(SHAPES):
        g = torch.randn(shape, generator=generator)
        g *= 10 ** torch.empty(shape).uniform_(-4, 4, generator=generator)
        unseen = torch.rand(shape, generator=torch.Generator().manual_seed(i))  # the same in every step
        if kind == "one in 256":
            g.view(-1)[::256] = 0
        elif kind == "rows":
            g[::2] = 0
        elif kind == "half":
            g[unseen < 0.5] = 0
        elif kind == "observed one after the other":
            g[unseen > (t + 1) / 10] = 0
        elif kind == "zero again":
            g[torch.rand(shape, generator=generator) < 0.3] = 0
        elif kind == "underflow":
            g[unseen < 0.3] *= 1e-30
            g[unseen < 0.2] = 0
        elif kind == "not finite" and t > 2:
            g[unseen < 0.3] = 0
            g.view(-1)[3], g.view(-1)[700] = torch.nan, torch.inf
        found.append(g.to(dtype))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [64, 256, 2048])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("dense", {}),
        ("one in 256", {}),
        ("rows", {}),
        ("half", {}),
        ("half", {"weight_decay": 0.1}),  # coupled: nothing stays unobserved
        ("half", {"maximize": True}),
        ("observed one after the other", {"weight_decay": 0.1, "decouple": True, "beta2_warmup": True}),
        ("zero again", {"betas": (0.9, 0.0)}),
        ("underflow", {}),
        ("underflow", {"eps": 1e-40}),
        ("not finite", {}),
    ],
)
def test_it_is_the_definition_to_the_bit(
    kind: str, options: dict[str, Any], block_size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a root that is rounded correctly, which torch's is not on every processor."""
    monkeypatch.setattr(Tensor, "sqrt", lambda t: torch.from_numpy(np.sqrt(t.numpy())))
    results = []
    for backend in ("reference", "fused"):
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
        optimizer = ADOPT(params, lr=1e-2, state_bits=8, block_size=block_size, backend=backend, **options)
        for t in range(8):
            for p, g in zip(params, gradients(t, kind, dtype), strict=True):
                p.grad = g
            optimizer.step()
        results.append([*(p.detach() for p in params), *(x for p in params for x in optimizer.state[p].values())])
    for of_definition, of_kernel in zip(*results, strict=True):
        torch.testing.assert_close(of_kernel, of_definition, rtol=0, atol=0, equal_nan=True)
