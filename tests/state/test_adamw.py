"""AdamW's state as ADOPT's, and back: against what the two optimizers are defined to keep, in float64.

The reference is made of the sums that the moments are, and of torch's own AdamW; a round trip loses rounding only.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adopt_hf import ADOPT, ADOPTW
from adopt_hf.algorithm import least_of
from adopt_hf.state import adamw

EPS = torch.finfo(torch.float64).eps
SINGLE = torch.finfo(torch.float32).eps
BETA2 = st.sampled_from([0.0, 0.9, 0.95, 0.999, 0.9999])
MAGNITUDE = st.floats(-30, 8).map(lambda exponent: 10.0**exponent)


def gradients(steps: int, seed: int = 0) -> Tensor:
    """Gradients of twelve elements with scales from 1e-5 to 1e6; the last element never has one."""
    scales = torch.logspace(-5, 6, 12, dtype=torch.float64)
    grads = torch.randn(steps, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scales
    grads[:, -1] = 0
    return grads


def trained(cls: Any, steps: int, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    p = nn.Parameter(torch.ones(12, dtype=dtype))
    optimizer = cls([p], **options)
    for g in gradients(steps):
        p.grad = g.to(dtype)
        optimizer.step()
    return optimizer


def converted(optimizer: Any, to: str, **given: Any) -> dict[str, Any]:
    """Return the state dict of the other optimizer."""
    saved = optimizer.state_dict()
    (group,) = saved["param_groups"]
    new = adamw.adopts_group(group, given) if to == "adopt" else adamw.adamws_group(group, given, fused=None)
    convert = adamw.adopts_state if to == "adopt" else adamw.adamws_state
    state = {key: convert(entry, group, new, "the state") for key, entry in saved["state"].items()}
    return {"state": state, "param_groups": [new]}


# -- the equations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 7, 400])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95), (0.0, 0.0)], ids=str)
def test_the_moments_are_the_means_that_adopt_keeps(steps: int, betas: tuple[float, float]) -> None:
    """v: the mean of all squares with AdamW's weights; m: AdamW's mean of gradients over max(root, eps)."""
    beta1, beta2 = betas
    state = converted(trained(torch.optim.AdamW, steps, betas=betas), "adopt", eps=1e-3)["state"][0]
    grads, powers = gradients(steps), torch.arange(steps - 1, -1, -1, dtype=torch.float64)
    weights = beta2**powers
    v = (grads.square() * weights[:, None]).sum(0) / weights.sum()
    m = (grads * ((1 - beta1) * beta1**powers)[:, None]).sum(0) / v.sqrt().clamp(min=1e-3)
    torch.testing.assert_close(state["exp_avg_sq"], v, rtol=1e-12, atol=0)
    torch.testing.assert_close(state["exp_avg"], m, rtol=1e-10, atol=1e-14)
    assert state["step"].item() == steps
    assert state["exp_avg_sq"][-1] == state["exp_avg"][-1] == 0  # never observed


def test_the_tolerance_rejects_a_v_with_the_bias_left_in() -> None:
    saved = trained(torch.optim.AdamW, 400).state_dict()["state"][0]
    state = converted(trained(torch.optim.AdamW, 400), "adopt")["state"][0]
    assert not torch.allclose(state["exp_avg_sq"], saved["exp_avg_sq"], rtol=1e-3)


@pytest.mark.parametrize("steps", [20, 400])
def test_the_direction_of_the_next_step_is_adamws(steps: int) -> None:
    """Return the update of AdamW with its present moments, without its eps and its correction of m."""
    optimizer = trained(torch.optim.AdamW, steps)
    saved = optimizer.state_dict()["state"][0]
    state = converted(optimizer, "adopt")["state"][0]
    root = (saved["exp_avg_sq"] / (1 - 0.999**steps)).sqrt() + 1e-8
    adamws = saved["exp_avg"] / (1 - 0.9**steps) / root
    torch.testing.assert_close(state["exp_avg"], adamws, rtol=0.9**steps * 1.2 + 2e-2, atol=1e-9)
    torch.testing.assert_close(state["exp_avg"][3:], (adamws * (1 - 0.9**steps))[3:], rtol=1e-4, atol=1e-9)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(MAGNITUDE, MAGNITUDE, st.booleans()), min_size=1, max_size=8),
    st.integers(1, 2**24),
    BETA2,
    st.sampled_from([0.0, 1e-8, 1e-6, 1e-2]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_there_and_back(
    pairs: list[tuple[float, float, bool]], t: int, beta2: float, eps: float, dtype: torch.dtype
) -> None:
    """m and v return to two roundings each, of normal numbers; v keeps its sign of life."""
    m = torch.tensor([-m if negative else m for m, _, negative in pairs], dtype=dtype)
    v = torch.tensor([v for _, v, _ in pairs], dtype=dtype)
    there = adamw.moments_of_adopt(m, v, t, beta2, eps)
    back = adamw.moments_of_adamw(*there, t, beta2, eps)
    close = {"rtol": 4 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny}
    torch.testing.assert_close(back[1], v, **close)
    finite = there[0].isfinite() & (there[0].abs() > torch.finfo(dtype).tiny)
    torch.testing.assert_close(back[0][finite], m[finite], **close)
    back = adamw.moments_of_adamw(m, v, t, beta2, eps)
    there = adamw.moments_of_adopt(*back, t, beta2, eps)
    normal = (v > 1e-25) & (back[0].abs() > torch.finfo(dtype).tiny)
    torch.testing.assert_close(there[1][normal], v[normal], **close)
    torch.testing.assert_close(there[0][normal], m[normal], **close)


def test_an_observed_v_stays_observed() -> None:
    """v = least is the definition's observed zero, whose root counts as 0."""
    least = least_of(torch.float32)
    m, v = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([least, 4.0, 0.0])
    there = adamw.moments_of_adamw(m, v, 1, 0.999, 1e-6)
    assert (there[1] > 0).tolist() == [True, True, False]
    torch.testing.assert_close(there[0], torch.tensor([0.5e-6, 1.0, 0.0]))
    back = adamw.moments_of_adopt(*there, 1, 0.999, 1e-6)
    assert (back[1] > 0).tolist() == [True, True, False]


# -- the optimizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam], ids=lambda cls: cls.__name__)
def test_adopt_goes_on_and_adamw_again(cls: Any, dtype: torch.dtype, steps: int) -> None:
    """The states load, and AdamW's returns to rounding. Adam's decay is coupled, and without decay it is AdamW."""
    optimizer = trained(cls, steps, dtype, lr=3e-4, weight_decay=0.0)
    adopt = trained(ADOPTW, 2, dtype)
    adopt.load_state_dict(converted(optimizer, "adopt"))
    (group,), (state,) = adopt.param_groups, adopt.state.values()
    assert (group["lr"], group["decouple"]) == (3e-4, cls is torch.optim.AdamW)
    assert state["step"].item() == steps
    assert state["exp_avg"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    back = converted(adopt, "adamw")
    again = trained(torch.optim.AdamW, 2, dtype)
    again.load_state_dict(back)
    theirs, ours = optimizer.state_dict(), again.state_dict()
    assert ours["param_groups"][0].keys() == theirs["param_groups"][0].keys()
    for name in ("exp_avg", "exp_avg_sq"):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(ours["state"][0][name], theirs["state"][0][name], rtol=4 * eps, atol=0)
    before = state["exp_avg"].clone()
    adopt.step()
    assert state["step"].item() == steps + 1
    assert not torch.equal(state["exp_avg"], before)


def test_complex_parameters() -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = torch.optim.AdamW([p])
    for i in range(3):
        p.grad = torch.tensor([1 + 2j, 3 - 1j, 0j], dtype=torch.complex64) * (i + 1)
        optimizer.step()
    there = converted(optimizer, "adopt")
    adopt = ADOPTW([p])
    adopt.load_state_dict(there)
    back = converted(adopt, "adamw")["state"][0]
    for name, value in optimizer.state_dict()["state"][0].items():
        torch.testing.assert_close(back[name], value, rtol=4 * SINGLE, atol=0)


@pytest.mark.parametrize("bits", [8, 16])
def test_moments_of_few_bits_become_adamws(bits: int) -> None:
    p = nn.Parameter(torch.ones(64, 64))
    optimizer = ADOPTW([p], state_bits=bits)
    for seed in range(4):
        p.grad = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    single = ADOPTW([p])
    single.load_state_dict(optimizer.state_dict())
    few, plain = (converted(o, "adamw")["state"][0] for o in (optimizer, single))
    assert all(torch.equal(few[name], plain[name]) for name in few)
    torch.optim.AdamW([p]).load_state_dict(converted(optimizer, "adamw"))


# -- the param groups --------------------------------------------------------------------------------------------------


def group_of(cls: Any, **options: Any) -> dict[str, Any]:
    (group,) = cls([nn.Parameter(torch.ones(1))], **options).state_dict()["param_groups"]
    return group


def test_the_numbers_are_those_of_the_same_script_with_adopt() -> None:
    """Adam's defaults become ADOPT's, others stay; what the schedule keeps in a group stays, too."""
    group = group_of(torch.optim.AdamW, lr=2e-4, weight_decay=0.1) | {"initial_lr": 1e-3, "name": "decayed"}
    new = adamw.adopts_group(group, {})
    wanted = group_of(ADOPTW, lr=2e-4, weight_decay=0.1) | {"initial_lr": 1e-3, "name": "decayed"}
    del wanted["seed"]  # the run's own
    assert new == wanted
    group = group_of(torch.optim.AdamW, betas=(0.95, 0.98), eps=1e-5, maximize=True)
    new = adamw.adopts_group(group, {"clip_exp": None})
    assert [new[name] for name in ("betas", "eps", "maximize", "clip_exp")] == [(0.95, 0.98), 1e-5, True, None]


def test_back_the_numbers_are_adams() -> None:
    new = adamw.adamws_group(group_of(ADOPTW, lr=2e-4, weight_decay=0.1) | {"initial_lr": 1e-3}, {}, fused=True)
    assert new == group_of(torch.optim.AdamW, lr=2e-4, weight_decay=0.1) | {"initial_lr": 1e-3, "fused": True}
    new = adamw.adamws_group(group_of(ADOPT, betas=(0.95, 0.98), eps=1e-5), {"eps": 1e-7}, fused=None)
    assert (new["betas"], new["eps"]) == ((0.95, 0.98), 1e-7)


def test_what_adamw_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"its weight decay of 0.1 is coupled \(decouple=False\), and AdamW's is not"):
        adamw.adamws_group(group_of(ADOPT, weight_decay=0.1), {}, fused=None)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (group_of(torch.optim.AdamW, amsgrad=True), "it was trained with amsgrad=True, which ADOPT does not have"),
        ({"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0, "params": []}, "it is the state of Lion, not of A"),
        ({"lr": 1e-3, "betas": (0.9, 0.99), "eps": 0.0, "weight_decay": 0.0}, "it is not the state of AdamW: its p"),
        ({}, "its param groups have no options"),
        (
            {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "bias_correction": False},
            "bias_correction=False",
        ),
        (
            {"lr": 1.0, "betas": (0.9, 0.9, 0.9), "eps": 1e-8, "weight_decay": 0, "t_alpha": None},
            r"it has betas=\(0.9, 0.9, 0.9\), and AdamW has two",
        ),
    ],
)  # fmt: skip
def test_groups_of_others_are_refused(group: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adamw.check_groups([group_of(torch.optim.AdamW), group])


OTHERS = {
    "SGD": "SGD",
    "Adadelta": "Adadelta",
    "Adafactor": "Adafactor of torch",
    "Adagrad": "Adagrad",
    "Adamax": "Adamax, RAdam or another relative of Adam",
    "ASGD": "ASGD",
    "LBFGS": "LBFGS",
    "Muon": "Muon",
    "NAdam": "NAdam",
    "RAdam": "Adamax, RAdam or another relative of Adam",
    "RMSprop": "RMSprop",
    "Rprop": "Rprop",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_optimizers_of_torch_are_named(name: str) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip(f"this torch has no {name}")
    params = [nn.Parameter(torch.ones(2, 2))]
    groups = getattr(torch.optim, name)(params).state_dict()["param_groups"]
    with pytest.raises(ValueError, match=f"it is the state of {OTHERS[name]}, not of AdamW: its param groups have "):
        adamw.check_groups(groups)


def test_transformers_adafactor_is_named() -> None:
    from transformers.optimization import Adafactor

    with pytest.raises(ValueError, match="it is the state of Adafactor, not of AdamW"):
        adamw.check_groups([group_of(Adafactor)])


# What AdamW of torch takes, in the forms that it takes them in.
OPTIONS_OF_ADAMW: dict[str, dict[str, Any]] = {
    "amsgrad=0": {"amsgrad": 0},
    "maximize": {"maximize": True},
    "capturable": {"capturable": True, "foreach": False},
    "differentiable": {"differentiable": True},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "a tensor as lr": {"lr": torch.tensor(2e-3), "foreach": False},
    "tensors as betas": {"betas": (torch.tensor(0.9), torch.tensor(0.999)), "foreach": False},
}


@pytest.mark.parametrize("options", OPTIONS_OF_ADAMW.values(), ids=OPTIONS_OF_ADAMW)
def test_each_option_of_adamw(options: dict[str, Any], tmp_path: Path) -> None:
    """A saved state converts whatever AdamW was made with, gives ADOPT's numbers, and comes back."""
    p = nn.Parameter(torch.ones(3))
    try:
        optimizer = torch.optim.AdamW([p], **options)
    except ValueError as error:
        pytest.skip(f"this torch does not take it: {error}")
    for i in range(3):
        p.grad = torch.arange(3.0) * (i + 1)
        if options.get("differentiable"):
            optimizer.state[p] = {
                "step": torch.tensor(float(i + 1)),
                "exp_avg": (p * 0.1 * i).clone(),
                "exp_avg_sq": (p * 0.2).clone(),
            }
        elif options.get("capturable"):  # which takes no step on a CPU
            optimizer.state[p] = {"step": torch.tensor(1.0), "exp_avg": p.grad * 0.1, "exp_avg_sq": p.grad.square()}
        else:
            optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "saved.pt")
    saved = torch.load(tmp_path / "saved.pt", weights_only=True)
    adamw.check_groups(saved["param_groups"])
    (group,), state = saved["param_groups"], saved["state"][0]
    new = adamw.adopts_group(group, {})
    assert (new["betas"], new["eps"]) == ((0.9, 0.9999), 1e-6)
    assert new["maximize"] is options.get("maximize", False)
    assert not {"amsgrad", "foreach", "fused", "differentiable"} & new.keys()
    ours = adamw.adopts_state(state, group, new, "it")
    assert not any(t.requires_grad for t in ours.values())
    adopt = ADOPTW([nn.Parameter(torch.ones(3))])
    adopt.load_state_dict({"state": {0: ours}, "param_groups": [new]})
    back = adamw.adamws_state(ours, new, adamw.adamws_group(new, {}, fused=None), "it")
    for name in back:
        torch.testing.assert_close(back[name], state[name].detach(), rtol=4e-7, atol=1e-38)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"amsgrad": torch.tensor([False, True])},
            r"it has amsgrad=tensor\(\[False,  True\]\), which must be True or F",
        ),
        ({"amsgrad": torch.tensor(True)}, "it was trained with amsgrad=True, which ADOPT does not have"),
        ({"amsgrad": "no"}, "it has amsgrad='no', which must be True or False"),
        ({"amsgrad": []}, r"it has amsgrad=\[\], which must be True or False"),
        ({"bias_correction": torch.zeros(2)}, "it has bias_correction=tensor"),
        ({"caution": True}, "it was trained with caution=True, which ADOPT does not have"),
        ({"corrected_weight_decay": True}, "it was trained with corrected_weight_decay=True"),
        ({"betas": (torch.ones(2), 0.9)}, "betas"),
        ({"betas": (0.9, 1.0)}, r"beta2 = betas\[1\] must be a number in \[0, 1\), got 1.0"),
        ({"betas": ("0.9", 0.9)}, r"beta1 = betas\[0\] must be a number in \[0, 1\), got '0.9'"),
        ({"eps": torch.ones(2)}, "eps must be a finite number >= 0, got tensor"),
        ({"eps": float("nan")}, "eps must be a finite number >= 0, got nan"),
    ],
)
def test_options_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adamw.check_groups([group_of(torch.optim.AdamW) | changes])


# -- states that cannot be ---------------------------------------------------------------------------------------------

STATE = {"step": torch.tensor(3.0), "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_exp_avg_sq": torch.ones(2)}, "the state has exp_avg, exp_avg_sq, max_exp_avg_sq, step"),
        ({"exp_avg": None}, "exp_avg of type NoneType, which must be a plain tensor"),
        ({"exp_avg": torch.ones(2, dtype=torch.int32)}, "exp_avg of torch.int32, which must be a floating"),
        ({"exp_avg": torch.ones(3)}, r"moments of \(3,\) and \(2,\) elements: they must be alike"),
        ({"exp_avg": torch.tensor([1.0, float("nan")])}, "exp_avg with numbers that are not finite: the run has"),
        ({"exp_avg_sq": torch.tensor([1.0, float("inf")])}, "exp_avg_sq with numbers that are not finite"),
        ({"exp_avg_sq": torch.tensor([1.0, -1.0])}, "exp_avg_sq with numbers below 0"),
        ({"exp_avg": torch.ones(2, device="meta")}, "exp_avg of type Tensor, which must be a plain tensor"),
        ({"step": torch.tensor(0.0)}, "step 0 and exp_avg_sq that is not 0"),
        ({"step": torch.tensor(2.5)}, "step 2.5, which must be a whole number"),
        ({"step": None}, "step None, which must be a whole number"),
    ],
    ids=str,
)  # fmt: skip
def test_states_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    groups = group_of(torch.optim.AdamW), group_of(ADOPTW)
    with pytest.raises(ValueError, match=f"the state .*{message}|{message}"):
        adamw.adopts_state(STATE | changes, *groups, "the state")
    with pytest.raises(ValueError, match=r"the state has |{message}"):
        adamw.adamws_state(STATE | changes, *groups[::-1], "the state")


def test_a_state_without_moments_is_named() -> None:
    groups = group_of(torch.optim.AdamW), group_of(ADOPTW)
    with pytest.raises(ValueError, match="the state has step: AdamW's has step, exp_avg and exp_avg_sq"):
        adamw.adopts_state({"step": 1}, *groups, "the state")
    with pytest.raises(ValueError, match="the state has step: ADOPT's has exp_avg, exp_avg_sq, step"):
        adamw.adamws_state({"step": 1}, *groups[::-1], "the state")
