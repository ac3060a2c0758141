"""The ablation: the variants are Adam and ADOPT in their limits, and both changes are needed."""

from pathlib import Path

import pytest
import torch

from adopt_hf import ADOPT
from experiments.harness.runs import InputError
from experiments.paper import ablation, toy
from experiments.paper.variants import Variant
from tests.experiments.test_paper import call, stamps

SETTINGS = {"problem": "k=10", "steps": 30_000, "seeds": 64, "lr": 0.1, "decay": 0.1}


def trained(make: type[torch.optim.Optimizer], steps: int = 30, **arguments: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    optimizer = make([p], lr=0.01, **arguments)  # type: ignore[call-arg]
    for _ in range(steps):
        p.grad = torch.randn(7, generator=generator, dtype=torch.float64)
        optimizer.step()
    return p.detach()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.5, 0.1), (0.0, 0.9)])
def test_both_changes_are_adopt_and_neither_is_adam(betas: tuple[float, float]) -> None:
    adopt = trained(ADOPT, betas=betas, clip_exp=None)
    adam = trained(torch.optim.Adam, betas=betas, eps=1e-16)
    variants = {
        (decorrelate, reorder): trained(Variant, betas=betas, eps=1e-14, decorrelate=decorrelate, reorder=reorder)
        for decorrelate in (False, True)
        for reorder in (False, True)
    }
    assert same(variants[True, True], adopt)
    assert same(variants[False, False], adam)
    # Without momentum there is nothing to reorder.
    assert same(variants[True, False], adopt) == same(variants[False, True], adam) == (betas[0] == 0)
    assert not same(adam, adopt)


def test_both_changes_are_needed() -> None:
    far = {}
    for variant in ablation.VARIANTS:
        settings = {"variant": variant, "beta2": 0.5, **SETTINGS}
        row = {"settings": settings, "result": ablation.one(**settings)}  # type: ignore[arg-type]
        far[variant] = toy.way(row)[0]
        assert toy.failed(row) == (variant != "both changes")
    assert far["both changes"] > 0.85
    assert max(far[variant] for variant in ablation.VARIANTS if variant != "both changes") < -0.85


@pytest.mark.parametrize("wrong", [{"lr": -1}, {"betas": (0.9, 1.0)}, {"eps": 0}])
def test_wrong_hyperparameters(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="needs lr >= 0, betas in"):
        Variant([torch.zeros(1)], decorrelate=True, reorder=True, **wrong)  # type: ignore[arg-type]


def test_an_unknown_variant() -> None:
    with pytest.raises(InputError, match="variant must be one of neither; no decorrelation"):
        ablation.one("none", 0.9, **SETTINGS)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    done = call("ablation", "--folder", tmp_path, "--workers", "1", "--set", "steps=50", "seeds=4")
    assert done.returncode == 0, done.stderr
    assert "| no reordering |" in done.stdout
    assert "The decorrelation is needed" in done.stdout
    assert len(stamps(tmp_path)) == len(ablation.parts(True))
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
