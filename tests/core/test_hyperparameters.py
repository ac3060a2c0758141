"""The table of options: each is checked, bad values are named, and what is a view of it agrees with it."""

import inspect
import math
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from adopt_hf import ADOPT, ADOPTW, backends, hyperparameters
from adopt_hf.hyperparameters import DEFAULTS, HYPERPARAMETERS, OF_ADOPTW, OPTIONS


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


def test_the_options_are_the_arguments_of_the_classes() -> None:
    taken = inspect.signature(ADOPT.__init__).parameters
    assert {name: taken[name].default for name in OPTIONS} == DEFAULTS
    group = ADOPTW([torch.nn.Parameter(torch.ones(1))]).param_groups[0]
    as_numbers = {name: HYPERPARAMETERS[name].check(name, value) for name, value in OF_ADOPTW.items()}
    assert {name: group[name] for name in OPTIONS} == DEFAULTS | as_numbers


def test_the_backends_are_those_of_the_table() -> None:
    assert HYPERPARAMETERS["backend"].values == backends.NAMES


def test_a_default_of_adoptw_is_of_an_option_with_another_default() -> None:
    assert OF_ADOPTW
    assert all(HYPERPARAMETERS[name].default != value for name, value in OF_ADOPTW.items())
