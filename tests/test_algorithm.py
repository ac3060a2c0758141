"""The definition: equal to an implementation in plain Python floats that shares no code with it; hyperparameters are
checked; the numbers of a step are right where they are easily wrong."""

import math
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adopt_hf import ADOPT, algorithm, hyperparameters
from adopt_hf.algorithm import step_scalars, update
from adopt_hf.hyperparameters import HYPERPARAMETERS
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
    ("group", "message"),
    [
        ({"lr": -1.0}, r"lr must be a finite number >= 0, got -1.0"),
        ({"lr": math.nan}, r"lr must be .* got nan"),
        ({"lr": math.inf}, r"lr must be .* got inf"),
        ({"lr": 10**400}, r"lr must be .* got 10000"),
        ({"lr": 1e39}, r"lr must be a finite number >= 0, got 1e\+39"),
        ({"clip_exp": 30}, r"clip_exp must be a number in \[0, 5\) or None, got 30"),
        ({"lr": "1e-3"}, r"lr must be .* got '1e-3'"),
        ({"lr": True}, r"lr must be .* got True"),
        ({"lr": None}, r"lr must be .* got None"),
        ({"lr": torch.tensor([1.0, 2.0])}, r"Tensor lr must be 1-element, got shape \(2,\)"),
        ({"lr": torch.tensor(-1.0)}, r"lr must be .* got -1.0"),
        ({"lr": torch.tensor(1)}, r"Tensor lr must be floating point, got torch.int64"),
        ({"betas": (1.0, 0.9)}, r"beta1 = betas\[0\] must be a number in \[0, 1\), got 1.0"),
        ({"betas": (0.9, 1.0)}, r"beta2 = betas\[1\] must be a number in \[0, 1\), got 1.0"),
        ({"betas": (-0.1, 0.9)}, r"beta1 = betas\[0\] must be .* got -0.1"),
        ({"betas": 0.9}, r"betas must be a pair .* got 0.9"),
        ({"betas": (0.9, 0.99, 0.999)}, r"betas must be a pair"),
        ({"eps": -1e-8}, r"eps must be a finite number >= 0, got -1e-08"),
        ({"weight_decay": -0.1}, r"weight_decay must be a finite number >= 0, got -0.1"),
        ({"decouple": "False"}, r"decouple must be True or False, got 'False'"),
        ({"decouple": 1}, r"decouple must be True or False, got 1"),
        ({"clip_exp": -0.25}, r"clip_exp must be a number in \[0, 5\) or None, got -0.25"),
        ({"clip_exp": "none"}, r"clip_exp must be .* got 'none'"),
        ({"maximize": None}, r"maximize must be True or False, got None"),
        ({"beta2_warmup": 2}, r"beta2_warmup must be True, False or a number in \(0, 1\], got 2"),
        ({"beta2_warmup": 0.0}, r"beta2_warmup must be True, False or a number in \(0, 1\], got 0.0"),
        ({"beta2_warmup": "yes"}, r"beta2_warmup must be .* got 'yes'"),
        ({"beta2_warmup": math.nan}, r"beta2_warmup must be .* got nan"),
    ],
)
def test_bad_hyperparameters_are_named(group: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hyperparameters.check_group(group)


def test_hyperparameters_become_plain_values() -> None:
    """numpy's numbers pass for floats, but torch.load(weights_only=True) refuses them."""
    np = pytest.importorskip("numpy", reason="comes with transformers, not with torch")
    checked = hyperparameters.check_group(
        {"lr": np.float64(0.1), "eps": np.float32(0.5), "betas": [0, np.float64(0.5)]}
    )
    assert checked == {"lr": 0.1, "eps": 0.5, "betas": (0.0, 0.5)}
    assert [type(x) for x in (checked["lr"], checked["eps"], *checked["betas"])] == [float] * 4


class ListConfig(Sequence[float]):
    """As OmegaConf's, which hydra passes: a sequence that is neither a list nor a tuple."""

    def __init__(self, *values: float):
        self.values = values

    def __getitem__(self, i: Any) -> Any:
        return self.values[i]

    def __len__(self) -> int:
        return len(self.values)


NUMBERS = [0.5, 0.75]
PAIRS: list[Any] = [
    tuple(NUMBERS),
    NUMBERS,
    ListConfig(*NUMBERS),
    deque(NUMBERS),
    array("d", NUMBERS),
    torch.tensor(NUMBERS),
]


@pytest.mark.parametrize("betas", PAIRS, ids=lambda x: type(x).__name__)
def test_any_pair_of_numbers_is_betas(betas: Any) -> None:
    checked = hyperparameters.check_betas(betas)
    assert checked == (0.5, 0.75)
    assert [type(x) for x in checked] == [float, float]
    group = ADOPT([torch.ones(1)], betas=betas).param_groups[0]
    assert type(group["betas"]) is tuple, "a state_dict must hold plain values"


def test_numpy_betas() -> None:
    np = pytest.importorskip("numpy", reason="comes with transformers, not with torch")
    assert hyperparameters.check_betas(np.array([0.5, 0.75])) == (0.5, 0.75)
    with pytest.raises(ValueError, match="betas must be a pair"):
        hyperparameters.check_betas(np.array(0.5))


@pytest.mark.parametrize(
    "betas",
    [
        *("09", b"09", {0: 0.5, 1: 0.75}, {0.5, 0.75}, iter((0.5,)), ListConfig(0.5), (0.5, "0.75"), None),
        *(torch.ones(2, 2), torch.ones(2, device="meta")),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_is_no_pair_of_numbers(betas: Any) -> None:
    with pytest.raises(ValueError, match=r"betas\b"):
        hyperparameters.check_betas(betas)


def test_every_default_is_allowed() -> None:
    for name, hyperparameter in HYPERPARAMETERS.items():
        assert hyperparameter.check(name, hyperparameter.default) == hyperparameter.default


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
