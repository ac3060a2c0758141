"""Every hyperparameter counts in every rounded form of every kernel.

One step from a state in mid-training is the definition's in float64, to the last place that the form keeps. Each
hyperparameter is set to another value once, and the test sees whether it was ignored: what the definition does with the
former value is outside the bounds. In 8 bits the blocks are of all kinds: all observed, some not, some not finite.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from adopt_hf.algorithm import StepScalars, step_scalars, update
from adopt_hf.backends.bucket import RoundedBucket
from adopt_hf.state import quantization
from adopt_hf.state.formats import Format
from tests.backends.test_backends import runs_on
from tests.oracle import Settings

USUAL: dict[str, Any] = {"lr": 0.5, "betas": (0.9, 0.99), "grad_scale": 1.0}
OTHERS: dict[str, dict[str, Any]] = {
    "lr": {"lr": 0.1},
    "beta1": {"betas": (0.3, 0.99)},
    "beta2": {"betas": (0.9, 0.3)},
    "eps": {"eps": 3.0},
    "weight_decay, coupled": {"weight_decay": 3.0},
    "weight_decay, decoupled": {"weight_decay": 0.8, "decouple": True},
    "clip_exp": {"clip_exp": 0.0},
    "clip_exp None": {"clip_exp": None},
    "beta2_warmup": {"beta2_warmup": True},
    "maximize": {"maximize": True},
    "grad_scale": {"grad_scale": 4.0},
}
FORMS = {
    "8 bits": Format(8, 64, False),
    "8 bits, rounded bfloat16": Format(8, 64, True),
    "16 bits": Format(16, 64, False),
    "16 bits, rounded bfloat16": Format(16, 64, True),
    "32 bits, rounded bfloat16": Format(32, 64, True),
}
KINDS = ("observed", "some not observed", "some not finite")
SHAPE = (3, 150)
Three = tuple[Tensor, Tensor, Tensor]  # theta, m, v


def scalars_of(changed: dict[str, Any]) -> StepScalars:
    numbers = USUAL | changed
    scale = numbers.pop("grad_scale")
    return step_scalars(vars(Settings(**numbers)), 5, scale)


def bucket_of(format: Format, kind: str, scalars: StepScalars) -> RoundedBucket:
    generator = torch.Generator().manual_seed(0)
    p, g, m = (torch.randn(SHAPE, generator=generator) for _ in range(3))
    v = torch.rand(SHAPE, generator=generator) + 0.5
    if kind == "some not observed":
        unseen = torch.rand(SHAPE, generator=generator) < 0.3
        m[unseen] = v[unseen] = 0
    elif kind == "some not finite":
        v.view(-1)[::50] = torch.inf
    dtype = torch.bfloat16 if format.round_param else torch.float32
    scales = []
    if format.bits == 8:
        m, v, of_blocks = quantization.quantize(m, v, format.block_size, 1)
        scales.append(of_blocks)
    elif format.bits == 16:
        m, v = m.bfloat16(), v.bfloat16()
    return RoundedBucket([p.to(dtype)], [(3 * g).to(dtype)], [m], [v], scales, [77], format, scalars)


def decoded(bucket: RoundedBucket) -> Three:
    m, v = bucket.exp_avgs[0], bucket.exp_avg_sqs[0]
    if bucket.scales:
        m, v = quantization.dequantize(quantization.Quantized(m, v, bucket.scales[0]), bucket.format.block_size)
    return bucket.params[0].double(), m.double(), v.double()


def wanted(format: Format, kind: str, scalars: StepScalars) -> Three:
    before = bucket_of(format, kind, scalars)
    p, m, v = decoded(before)
    return update(p, before.grads[0].double(), m, v, scalars)


def fits(format: Format, got: Three, expected: Three) -> bool:
    """Whether each number is one of the neighbours that the expected one may be rounded to."""
    theta, m, v = (x.nan_to_num(0, 0, 0).abs() for x in expected)
    bounds = {
        8: ((m + m.max() / 223) / 16, v / 4),  # 4 bits of m, and at least 2 of v
        16: (m * 2**-7, v * 2**-7),
        32: (m * 1e-5, v * 1e-5),
    }[format.bits]
    of_theta = theta * (2**-7 if format.round_param else 1e-5)
    return all(
        bool((((a - b).abs() <= bound + 1e-6) | (a == b) | (a.isnan() & b.isnan())).all())
        for a, b, bound in zip(got, expected, (of_theta, *bounds), strict=True)
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # numpy's, of inf and NaN
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OTHERS)
def test_no_hyperparameter_is_ignored(name: str, form: str, backend: str) -> None:
    step, format = runs_on(backend, "cpu").step_rounded, FORMS[form]
    assert step is not None
    for kind in KINDS:
        bucket = bucket_of(format, kind, scalars_of(OTHERS[name]))
        step([bucket])
        got = decoded(bucket)
        assert fits(format, got, wanted(format, kind, scalars_of(OTHERS[name]))), kind
        assert not fits(format, got, wanted(format, kind, scalars_of({}))), f"{kind}: the test could not tell"
        assert got[0].isfinite().all() == (kind != "some not finite")


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@pytest.mark.parametrize("form", FORMS)
def test_an_observed_v_of_zero_is_told_from_one_never_observed(form: str, backend: str) -> None:
    """At beta2 = 0 after a zero gradient, and after a first gradient whose square underflows."""
    step, format = runs_on(backend, "cpu").step_rounded, FORMS[form]
    assert step is not None
    for kind in ("observed", "some not observed"):
        bucket = bucket_of(format, kind, scalars_of({"betas": (0.9, 0.0)}))
        never = decoded(bucket)[2] == 0
        grad = bucket.grads[0]
        grad[:, ::2] = 0
        grad[:, 1::4] = 1e-25
        step([bucket])
        assert torch.equal(decoded(bucket)[2] == 0, never & (grad == 0))
