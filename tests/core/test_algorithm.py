"""The definition: equal to an implementation in plain Python floats that shares no code with it; the numbers of a step
are right where they are easily wrong."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adopt_hf import algorithm
from adopt_hf.algorithm import step_scalars, update
from tests.oracle import Oracle, Settings

finite = st.floats(-1e3, 1e3, allow_subnormal=False)
gradient = st.one_of(st.just(0.0), finite.filter(lambda g: g == 0 or abs(g) > 1e-3))
settings = st.builds(
    Settings,
    lr=st.floats(0, 1),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.9999)),
    eps=st.floats(1e-10, 1),
    weight_decay=st.floats(0, 0.1),
    decouple=st.booleans(),
    clip_exp=st.one_of(st.none(), st.floats(0, 1)),
    beta2_warmup=st.one_of(st.just(False), st.just(1.0), st.floats(0.3, 1)),
    maximize=st.booleans(),
)


@given(
    settings=settings,
    theta=st.lists(finite, min_size=1, max_size=4),
    data=st.data(),
)
def test_update_is_the_oracles(settings: Settings, theta: list[float], data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.lists(gradient, min_size=len(theta), max_size=len(theta)), min_size=1, max_size=8))
    oracle = Oracle(list(theta), settings)
    p = torch.tensor(theta, dtype=torch.float64)
    m, v, t = torch.zeros_like(p), torch.zeros_like(p), 0
    for g in steps:
        if t > 0 or any(g):
            p, m, v = update(p, torch.tensor(g, dtype=torch.float64), m, v, step_scalars(vars(settings), t))
            t += 1
        oracle.step(g)
        assert t == oracle.t
        # One step rounds about ten times; g - and with coupled decay g + weight_decay*theta - can cancel, so the bound
        # is relative to the largest numbers that took part.
        scale = max(1.0, *map(abs, theta), *(abs(x) for row in steps for x in row)) * len(steps)
        for ours, theirs in ((p, oracle.theta), (m, oracle.m)):
            expected = torch.tensor(theirs, dtype=torch.float64)
            bound = 1e-13 * scale * max(1.0, *(1 / settings.eps if settings.clip_exp is None else 1.0,))
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=bound)
        torch.testing.assert_close(v, torch.tensor(oracle.v, dtype=torch.float64), rtol=1e-9, atol=1e-13 * scale**2)


def test_update_changes_none_of_its_arguments() -> None:
    tensors = [torch.rand(5, dtype=torch.float64) for _ in range(4)]
    before = [t.clone() for t in tensors]
    update(*tensors, step_scalars(vars(Settings(weight_decay=0.1, maximize=True)), 3))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_first_observation_sets_v_and_moves_nothing() -> None:
    p, g = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    theta, m, v = update(p, g, torch.zeros(2), torch.zeros(2), step_scalars(vars(Settings()), 0))
    assert theta.tolist() == [1.0, 2.0]
    assert m.tolist() == [0.0, 0.0]
    assert v.tolist() == [9.0, 0.0]


def test_an_element_starts_at_its_first_nonzero_gradient() -> None:
    """The second element is seen first at t=5: then, and only then, its v is g*g and it does not move."""
    v = torch.tensor([4.0, 0.0])
    theta, _, v = update(torch.ones(2), torch.tensor([2.0, 3.0]), torch.zeros(2), v, step_scalars(vars(Settings()), 5))
    assert theta[0] < 1
    assert theta[1] == 1
    assert v[1] == 9


@pytest.mark.parametrize("g", [math.inf, -math.inf, 2e21])
@pytest.mark.parametrize("clip_exp", [0.25, None])
def test_an_element_whose_v_overflowed_is_nan_in_the_next_step(g: float, clip_exp: float | None) -> None:
    """1e-4 times the square of 2e21 is beyond float32. An update of 0 would freeze the element without a sign."""
    s = step_scalars(vars(Settings(clip_exp=clip_exp)), 16)
    _, m, v = update(torch.ones(1), torch.tensor([g]), torch.ones(1), torch.ones(1), s)
    assert v == math.inf
    theta, m, v = update(torch.ones(1), torch.ones(1), torch.ones(1), v, s)
    assert theta.isnan()
    assert m.isnan()
    assert v == math.inf


@pytest.mark.parametrize(
    ("settings", "t", "expected"),
    [
        (Settings(), 0, {"clip": 0.0, "decay": 1.0, "l2": 0.0, "scale": 1.0, "beta2": 0.9999}),
        (Settings(), 16, {"clip": 2.0}),
        (Settings(clip_exp=None), 16, {"clip": math.inf}),
        (Settings(clip_exp=0.0), 0, {"clip": 1.0}),
        (Settings(weight_decay=0.1), 1, {"l2": 0.1, "decay": 1.0}),
        (Settings(weight_decay=0.1, decouple=True, lr=0.5), 0, {"l2": 0.0, "decay": 1.0}),
        (Settings(weight_decay=0.1, decouple=True, lr=0.5), 1, {"l2": 0.0, "decay": 0.95}),
        (Settings(maximize=True), 1, {"scale": -1.0}),
        (Settings(beta2_warmup=1.0), 0, {"beta2": 0.0}),
        (Settings(beta2_warmup=1.0), 3, {"beta2": 0.75}),
        (Settings(beta2_warmup=1.0, betas=(0.9, 0.5)), 3, {"beta2": 0.5}),
        (Settings(beta2_warmup=0.5), 3, {"beta2": 0.5}),
        (Settings(beta2_warmup=0.5), 0, {"beta2": 0.0}),
        (Settings(beta2_warmup=0.5, betas=(0.9, 0.4)), 3, {"beta2": 0.4}),
    ],
)
def test_step_scalars(settings: Settings, t: int, expected: dict[str, float]) -> None:
    scalars = step_scalars(vars(settings), t)
    assert {name: getattr(scalars, name) for name in expected} == pytest.approx(expected)


def test_scalars_for_the_compiler_are_the_same_numbers() -> None:
    scalars = step_scalars(vars(Settings(weight_decay=0.1, decouple=True)), 3)
    assert [float(x) for x in scalars.for_compiler()] == list(scalars)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
        (torch.complex32, torch.complex64),
    ],
)
def test_moments_are_at_least_single_precision(dtype: torch.dtype, expected: torch.dtype) -> None:
    assert algorithm.state_dtype(dtype) == expected
