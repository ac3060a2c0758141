"""Only ADOPT's own states are taken, and the numbers in their groups are Python's."""

import io
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.state import saved_groups
from tests.state.runs import assert_unchanged, optimizer_of, parameters, snapshot, train

BASE: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
MOMENTS = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}


def by_torch(kind: type[torch.optim.Optimizer], **options: Any) -> dict[str, Any]:
    p = nn.Parameter(torch.ones(2, 3))
    optimizer = kind([p], **options)
    train(optimizer, range(3))
    return optimizer.state_dict()


def adopts_state() -> dict[str, Any]:
    return by_torch(ADOPT)


def through_adamw() -> dict[str, Any]:
    """ADOPT's state that torch's AdamW has taken, and gone on from: the groups are ADOPT's, the moments Adam's."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2, 3))])
    load = torch.optim.Optimizer.load_state_dict.__wrapped__  # as where adopt_hf is not imported: it would refuse
    load(optimizer, adopts_state())
    train(optimizer, range(3))
    return optimizer.state_dict()


def state_of(group: dict[str, Any], **state: Any) -> dict[str, Any]:
    return {"state": {0: MOMENTS | state}, "param_groups": [group | {"params": [0]}]}


QMAP = torch.linspace(-1, 1, 256)
FOREIGN: dict[str, Callable[[], dict[str, Any]]] = {
    "torch Adam": lambda: by_torch(torch.optim.Adam),
    "torch AdamW": lambda: by_torch(torch.optim.AdamW),
    "torch AdamW, amsgrad": lambda: by_torch(torch.optim.AdamW, amsgrad=True),
    "torch NAdam": lambda: by_torch(torch.optim.NAdam),
    "torch RAdam": lambda: by_torch(torch.optim.RAdam),
    "torch Adamax": lambda: by_torch(torch.optim.Adamax),
    "torch SGD": lambda: by_torch(torch.optim.SGD, momentum=0.9),
    "ADOPT's, gone through AdamW": through_adamw,
    "transformers' former AdamW": lambda: state_of(BASE | {"correct_bias": True, "initial_lr": 1e-3}, step=3),
    "a plain Adam": lambda: state_of(BASE),
    "a plain Adam, nothing trained yet": lambda: state_of(BASE) | {"state": {}},
    "DeepSpeed's FusedAdam": lambda: state_of(BASE | {"bias_correction": True}, step=3),
    "DeepSpeed's CPUAdam": lambda: state_of(BASE | {"bias_correction": True, "amsgrad": False}, step=3),
    "apex's FusedAdam": lambda: state_of(BASE | {"bias_correction": True, "step": 3}),
    "torchao's AdamW8bit": lambda: state_of(BASE | {"lr": torch.tensor(1e-3), "amsgrad": False}),
    "bitsandbytes' AdamW8bit": lambda: {
        "state": {
            0: {
                "step": 3, "state1": torch.zeros(2, 3, dtype=torch.uint8), "qmap1": QMAP, "absmax1": torch.ones(1),
                "state2": torch.zeros(2, 3, dtype=torch.uint8), "qmap2": QMAP, "absmax2": torch.ones(1),
            }
        },
        "param_groups": [BASE | {"params": [0], "t_alpha": None, "t_beta3": None, "alpha": 0.0}],
    },
    "Lion": lambda: state_of({"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}),
    "transformers' Adafactor": lambda: state_of(
        {
            "lr": 1e-3, "eps": (1e-30, 1e-3), "clip_threshold": 1.0, "decay_rate": -0.8, "beta1": None,
            "weight_decay": 0.0, "scale_parameter": True, "relative_step": False, "warmup_init": False,
        },
        RMS=1.0,
    ),
    "Prodigy, D-Adaptation": lambda: state_of(BASE | {"decouple": True, "d": 1e-6, "use_bias_correction": False}),
    "pytorch_optimizer's ADOPT, whose step is in the group": lambda: {
        "state": {0: {"exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}},
        "param_groups": [BASE | {"params": [0], "weight_decouple": False, "fixed_decay": False, "step": 3}],
    },
}  # fmt: skip


@pytest.mark.parametrize("cls", [ADOPT, LayerwiseADOPT])
@pytest.mark.parametrize("name", FOREIGN)
def test_states_of_other_optimizers_are_refused(name: str, cls: type[ADOPT]) -> None:
    saved = FOREIGN[name]()
    assert not saved_groups.is_adopt(saved["param_groups"])
    optimizer = cls([nn.Parameter(torch.ones(2, 3))], backend="reference")
    train(optimizer, range(2))
    before = snapshot(optimizer)
    with pytest.raises(
        ValueError, match=r"the saved state is not ADOPT's. Its param groups have .*--to adopt`.*weights only"
    ):
        optimizer.load_state_dict(saved)
    assert_unchanged(optimizer, before)


def test_a_state_of_several_groups_is_adopts_if_all_are() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    saved = ADOPT([{"params": [a]}, {"params": [b]}]).state_dict()
    assert saved_groups.is_adopt(saved["param_groups"])
    saved["param_groups"][1] = BASE | {"params": [1]}
    assert not saved_groups.is_adopt(saved["param_groups"])
    assert not saved_groups.is_adopt([])
    with pytest.raises(ValueError, match=r"is not ADOPT's. Its param groups have betas, eps, lr, weight_decay"):
        ADOPT([{"params": [a]}, {"params": [b]}]).load_state_dict(saved)


def test_numbers_of_other_libraries_are_saved_as_plain_ones() -> None:
    np = pytest.importorskip("numpy", reason="comes with transformers, not with torch")
    optimizer = optimizer_of(parameters(), "two groups")
    train(optimizer, range(1))
    optimizer.param_groups[0] |= {
        "lr": np.float64(0.01), "betas": (np.float64(0.5), np.float32(0.25)), "eps": np.array(1e-6),
        "initial_lr": np.float32(0.5), "decouple": np.bool_(True), "max_lrs": np.array([1.0, 2.0]), "seed": np.int64(3),
        "mine": {"a": [np.int32(1), np.str_("x")]}, "swap": Fraction(1, 2),
    }  # fmt: skip
    optimizer.param_groups[1]["lr"] = torch.tensor(0.01)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    group = saved["param_groups"][0]
    expected = {
        "lr": 0.01, "betas": (0.5, 0.25), "eps": 1e-6, "initial_lr": 0.5, "decouple": True, "max_lrs": [1.0, 2.0],
        "seed": 3, "mine": {"a": [1, "x"]}, "swap": 0.5,
    }  # fmt: skip
    assert {name: group[name] for name in expected} == expected
    assert {name: type(group[name]) for name in expected} == {name: type(value) for name, value in expected.items()}
    assert {type(x) for x in group["betas"]} == {float}
    assert torch.equal(saved["param_groups"][1]["lr"], torch.tensor(0.01))
    assert isinstance(optimizer.param_groups[0]["lr"], np.float64)  # the group is the schedule's


def test_a_scheduler_that_writes_numpy_numbers_is_resumed() -> None:
    np = pytest.importorskip("numpy", reason="comes with transformers, not with torch")
    ends = []
    for stops in (False, True):
        params = parameters()
        optimizer = optimizer_of(params, "32 bits")
        for t in range(6):
            optimizer.param_groups[0]["lr"] = np.float64(0.01) / (1 + t)
            if stops and t == 3:
                buffer = io.BytesIO()
                torch.save(optimizer.state_dict(), buffer)
                buffer.seek(0)
                optimizer = optimizer_of(params, "32 bits")
                optimizer.load_state_dict(torch.load(buffer, weights_only=True))
            train(optimizer, range(t, t + 1))
        ends.append(params)
    assert all(map(torch.equal, *ends))
