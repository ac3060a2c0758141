"""Every value of a parameter's saved state is checked."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from adopt_hf import ADOPT
from tests.state.runs import assert_unchanged, optimizer_of, parameters, snapshot, train


def coded(optimizer: ADOPT) -> Any:
    return optimizer.state_dict()["state"][0]


@pytest.mark.parametrize(
    ("form", "key", "change", "message"),
    [
        ("32 bits", "step", lambda _: None, r"parameter 0 \(a.weight\) has step None, which must be a whole number"),
        ("32 bits", "step", lambda _: [3.0], r"has step \[3.0\], which must be"),
        ("32 bits", "step", lambda _: torch.tensor(3.0, device="meta"), "has step tensor"),
        ("32 bits", "step", lambda _: torch.tensor([3.0, 3.0]), "has step tensor"),
        ("32 bits", "step", lambda _: float("nan"), "has step nan"),
        ("32 bits", "step", lambda _: 2.5, "has step 2.5"),
        ("32 bits", "step", lambda _: 1e30, "has step 1e\\+30"),
        ("32 bits", "step", lambda _: True, "has step True"),
        ("32 bits", "exp_avg", lambda t: t.tolist(), "has exp_avg of type list, which must be a tensor"),
        ("32 bits", "exp_avg", lambda t: t.to("meta"), "has exp_avg on the meta device"),
        ("32 bits", "exp_avg", lambda t: t.to(torch.complex64), "has exp_avg of torch.complex64"),
        ("32 bits", "exp_avg", lambda t: t.to(torch.int64), "has exp_avg of torch.int64"),
        ("32 bits", "exp_avg", lambda t: t.to_sparse(), "has exp_avg of layout torch.sparse_coo"),
        ("32 bits", "exp_avg_sq", lambda t: -t, "has exp_avg_sq with numbers below 0"),
        ("16 bits", "exp_avg_sq", lambda t: -t, "has exp_avg_sq with numbers below 0"),
        ("32 bits", "exp_avg_sq", lambda t: t[:, :3], r"has exp_avg_sq of shape \(64, 3\)"),
        ("8 bits", "scales", lambda t: t * torch.nan, "has scales that no block of 8-bit moments can have"),
        ("8 bits", "scales", lambda t: -t, "has scales that no block"),
        *(
            (
                "8 bits",
                "scales",
                lambda t, i=i: t.index_fill(-1, torch.tensor([i]), torch.nan),
                "has scales that no block",
            )
            for i in range(3)
        ),
        ("8 bits", "scales", lambda t: t.to("meta"), "has scales on the meta device"),
        ("8 bits", "exp_avg_codes", lambda t: t.float(), "has exp_avg_codes of shape .* and torch.float32"),
        ("8 bits", "exp_avg_codes", lambda _: None, "has exp_avg_codes of type NoneType"),
    ],
)
def test_bad_values_are_refused(form: str, key: str, change: Callable[[Any], Any], message: str) -> None:
    source, target = optimizer_of(parameters(), form), optimizer_of(parameters(), form)
    train(source, range(3))
    train(target, range(2))
    saved = copy.deepcopy(source.state_dict())
    saved["state"][0][key] = change(saved["state"][0][key])
    before = snapshot(target)
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(saved)
    assert_unchanged(target, before)


def test_complex_parameters_have_complex_moments() -> None:
    def complex_run() -> ADOPT:
        optimizer = ADOPT([nn.Parameter(torch.ones(3, dtype=torch.complex64))])
        train(optimizer, range(2))
        return optimizer

    source, target = complex_run(), complex_run()
    target.load_state_dict(source.state_dict())
    saved = copy.deepcopy(source.state_dict())
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].real.clone()
    with pytest.raises(ValueError, match=r"has exp_avg of torch.float32, the parameter is of torch.complex64"):
        target.load_state_dict(saved)
    saved["state"][0] = source.state_dict()["state"][0] | {"exp_avg_sq": torch.full((3,), 1 - 1j)}
    with pytest.raises(ValueError, match="has exp_avg_sq with numbers below 0"):
        target.load_state_dict(saved)


def test_scales_of_every_kind_of_block_are_taken() -> None:
    """Blocks never observed, of huge, tiny and subnormal gradients, of inf and NaN, after v has decayed to nothing."""
    for backend in ("reference", "auto"):
        params = [nn.Parameter(torch.ones(64, 128))]
        optimizer = ADOPT(params, state_bits=8, block_size=64, betas=(0.9, 0.5), backend=backend)
        for t in range(6):
            size = torch.tensor([0, 1e-45, 1e-38, 1e-20, 1, 1e18, 1e19, 1e30, torch.inf, torch.nan]).repeat(7)[:64]
            params[0].grad = size[:, None] * torch.randn(64, 128, generator=torch.Generator().manual_seed(t))
            params[0].grad[::2] *= t < 3
            optimizer.step()
            other = ADOPT([nn.Parameter(torch.ones(64, 128))], state_bits=8, block_size=64)
            other.load_state_dict(optimizer.state_dict())
