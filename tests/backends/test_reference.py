"""The definition of rounded steps, which runs where no kernel does, works in pieces:

- the results are those of whole tensors, to the bit, for every form, layout and place of a cut;
- its temporaries stay below 64 MiB at any size of a tensor.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adopt_hf.algorithm import step_scalars
from adopt_hf.backends import reference
from adopt_hf.backends.bucket import RoundedBucket
from adopt_hf.state import quantization
from adopt_hf.state.formats import Format
from tests.backends.test_foreach import Cost
from tests.oracle import Settings

SHAPES = ((), (0,), (5,), (3000,), (7, 300), (300, 7), (2, 900), (40, 64), (6, 5, 70), (129, 33))
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "with gaps": lambda t: torch.stack((t, t), -1)[..., 0],
    "outermost last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.dim() > 2 else t,
}


def bucket(format: Format, layout: str, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> RoundedBucket:
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if format.round_param else torch.float32
    params, grads, ms, vs, scales = [], [], [], [], []
    for i, shape in enumerate(shapes):
        p, g, m, v = (torch.randn(shape, generator=generator) for _ in range(4))
        params.append(LAYOUTS[layout](p.to(dtype)))
        grads.append(LAYOUTS[layout](g.to(dtype)))
        v = v**2 * (g > -1)
        if format.bits == 8:
            m, v, of_blocks = quantization.quantize(m, v, format.block_size, i)
            scales.append(of_blocks)
        elif format.bits == 16:
            m, v = m.bfloat16(), v.bfloat16()
        ms.append(m)
        vs.append(v)
    scalars = step_scalars(vars(Settings(weight_decay=0.1)), 5)
    return RoundedBucket(params, grads, ms, vs, scales, list(range(7, 7 + len(shapes))), format, scalars)


FORMATS = [Format(8, 64, False), Format(8, 64, True), Format(8, 256, True), Format(16, 64, True)]


@pytest.mark.parametrize("format", [*FORMATS, Format(32, 64, True)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [64, 512, 1024])
def test_pieces_change_no_bit(format: Format, layout: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = bucket(format, layout), bucket(format, layout)
    reference.step_rounded([whole])
    monkeypatch.setattr(reference, "PIECE", max(size, format.block_size))
    reference.step_rounded([cut])
    for a, b in zip(whole[:5], cut[:5], strict=True):
        assert all(map(torch.equal, a, b))
    assert not torch.equal(whole.params[3], bucket(format, layout).params[3])


@pytest.mark.everyday
@pytest.mark.parametrize("shape", [(3_000_017,), (1500, 2000), (3, 1_000_001), (20_000, 129), (1_000_000, 3)], ids=str)
@pytest.mark.parametrize("format", [Format(8, 256, True), Format(8, 2048, False), Format(16, 64, True)], ids=str)
def test_temporaries_stay_below_64_mib(shape: tuple[int, ...], format: Format) -> None:
    """Counted on the CPU: quantization has operations that meta tensors cannot do."""
    given: Any = bucket(format, "transposed" if len(shape) > 1 else "contiguous", (shape,))
    cost = Cost([t for column in given[:5] for t in column])
    with cost:
        reference.step_rounded([given])
    assert 2**23 < cost.peak < 2**26
