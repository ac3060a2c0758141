"""The toy problem in C: its updates are those of torch.optim and adopt_hf, its verdicts follow from the numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adopt_hf import ADOPT
from experiments.harness.runs import InputError
from experiments.paper import long_toy, toy
from tests.experiments.test_paper import call, stamps

SETTINGS: dict[str, Any] = {"lr": 0.01, "decay": 0.01, "seeds": long_toy.SEEDS}


def trained(optimizer: str, k: int, beta2: float, steps: int) -> np.ndarray:
    """The same steps by torch's optimizer or ours, float64."""
    theta = torch.zeros(long_toy.SEEDS, dtype=torch.float64, requires_grad=True)
    made = {
        "Adam": lambda: torch.optim.Adam([theta], betas=(0.9, beta2)),
        "AMSGrad": lambda: torch.optim.Adam([theta], betas=(0.9, beta2), amsgrad=True),
        "ADOPT": lambda: ADOPT([theta], betas=(0.9, beta2), clip_exp=None),
        toy.CLIPPED: lambda: ADOPT([theta], betas=(0.9, beta2)),
    }[optimizer]()
    found = []
    for t, gradient in enumerate(long_toy.gradients(k, steps)):
        theta.grad = torch.from_numpy(gradient.copy())
        made.param_groups[0]["lr"] = SETTINGS["lr"] / (1 + SETTINGS["decay"] * t) ** 0.5
        made.step()
        theta.data.clamp_(-1, 1)
        found.append(theta.detach().numpy().copy())
    return np.stack(found)


@pytest.mark.parametrize("optimizer", long_toy.KINDS)
@pytest.mark.parametrize("beta2", [0.1, 0.999])
def test_the_updates_are_the_optimizers(optimizer: str, beta2: float) -> None:
    steps = 200  # more than two blocks of gradients, and clips from 1 to 3.8 where a gradient is up to 10
    curve, _ = long_toy.descend(optimizer, 10, beta2, steps, 0.01, 0.01, np.arange(1, steps + 1))
    assert np.abs(curve).max() > 0.05
    np.testing.assert_allclose(curve, trained(optimizer, 10, beta2, steps), rtol=0, atol=1e-7)


def test_the_gradients_are_the_problems_and_seeds_are_independent() -> None:
    found = long_toy.gradients(10, 20_000)
    assert set(np.unique(found)) == {-10.0, 100.0}
    large = found > 0
    assert large.mean() == pytest.approx(0.1, abs=5 * (0.09 / large.size) ** 0.5)
    # Of a seed, of two seeds at once, and of one step and the next.
    assert large.mean(0) == pytest.approx(0.1, abs=6 * (0.09 / 20_000) ** 0.5)
    both = (large[:, :-1] & large[:, 1:]).mean(), (large[:-1] & large[1:]).mean()
    assert both == pytest.approx((0.01, 0.01), abs=0.0005)


def row(k: int, optimizer: str, beta2: float, steps: int) -> dict[str, Any]:
    settings = {"problem": f"k={k}", "k": k, "optimizer": optimizer, "beta2": beta2, "steps": steps, **SETTINGS}
    return {"settings": settings, "result": long_toy.one(**settings)}


def test_with_k_10_it_ends_as_figure_1_and_the_clip_is_late_by_its_price() -> None:
    steps = long_toy.PER_K4 * 10**4
    adam, adopt, clipped = ({0.1: row(10, name, 0.1, steps)} for name in ("Adam", "ADOPT", toy.CLIPPED))
    assert toy.failed(adam[0.1])
    assert toy.converges(adopt) == toy.converges(clipped) == "reproduced"
    price = long_toy.later([*adopt.values(), *clipped.values()], 0.1)
    assert list(price) == [10]
    assert long_toy.cost(price) == "reproduced"


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ({10: (100, 10_100), 50: (900, 6_000_000)}, "reproduced"),
        ({10: (100, 10_100), 50: (900, 1000)}, "contradicted"),
        ({10: (100, 40_000)}, "contradicted"),
        ({10: (100, None)}, "contradicted"),
        ({10: (None, 10_000)}, "not at this scale"),
    ],
)
def test_the_verdict_on_the_price(found: dict[int, tuple[int | None, int | None]], verdict: str) -> None:
    assert long_toy.cost(found) == verdict


def test_half_way_is_the_first_step_from_which_it_stays() -> None:
    adam = row(10, "Adam", 0.1, 1000)["result"]
    assert adam["half_way"] is None
    assert adam["step"][0] == 1
    assert adam["step"][-1] == 1000
    adopt = row(10, "ADOPT", 0.9, 50_000)["result"]
    after = [mean for step, mean in zip(adopt["step"], adopt["mean"], strict=True) if step >= adopt["half_way"]]
    assert max(after) < long_toy.HALF


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": "SGD"}, "optimizer must be one of Adam; AMSGrad; ADOPT; ADOPT, clipped; got 'SGD'"),
        ({"seeds": 5}, "needs seeds=64 and the problem k=10; got seeds=5"),
        ({"problem": "k=11"}, "got seeds=64, problem='k=11'"),
        ({"beta2": 1.0}, "0 <= beta2 < 1; got k=10"),
        ({"steps": 1}, "steps >= 10"),
    ],
)
def test_wrong_settings(changed: dict[str, Any], message: str) -> None:
    settings = {"problem": "k=10", "k": 10, "optimizer": "Adam", "beta2": 0.9, "steps": 100, **SETTINGS, **changed}
    with pytest.raises(InputError, match=message):
        long_toy.one(**settings)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from adopt_hf.backends.cpu import compiler

    def missing(source: Path) -> Any:
        raise RuntimeError(f"no compiler for {source.name}")

    monkeypatch.setattr(compiler, "load", missing)
    long_toy.library.cache_clear()
    try:
        with pytest.raises(InputError, match=r"no compiler for long_toy\.c"):
            row(10, "Adam", 0.1, 100)
    finally:
        long_toy.library.cache_clear()


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    done = call("long_toy", "--folder", tmp_path, "--workers", "1", "--set", "steps=500")
    assert done.returncode == 0, done.stderr
    assert "| 50, 500 | ADOPT, clipped |" in done.stdout
    assert "The clipping at t^(1/4) costs about k^4 steps for small β2" in done.stdout
    assert len(stamps(tmp_path)) == len(long_toy.parts(True))
    assert (tmp_path / "long_toy.png").read_bytes().startswith(b"\x89PNG")
