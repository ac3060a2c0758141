"""In float64, 200 steps on random problems: every backend is the authors' single-tensor code to 1e-12 relative.

Their code and the definition agree where every first gradient is non-zero, also if v becomes 0 later. Where a first
gradient is zero they part, and the definition is what counts (tested here too: the difference must show, or the
problems would test nothing).
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from adopt_hf import ADOPT, backends

pytestmark = pytest.mark.everyday

STEPS = 200
SHAPES = ((), (4,), (3, 5), (2, 3, 4))

adopt = pytest.importorskip("adopt", reason="torch-adopt is installed by the dev extra")

MODES: dict[str, dict[str, Any]] = {
    "no decay": {},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decouple": True},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "other betas and eps": {"betas": (0.5, 0.99), "eps": 1e-3},
}


class Problem:
    """Random convex quadratics with noisy gradients, one a shape."""

    def __init__(self, seed: int, zero_at_first: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.target = [self._normal(s) for s in SHAPES]
        self.curvature = [self._normal(s).exp() for s in SHAPES]
        self.noise = [[self._normal(s) for s in SHAPES] for _ in range(STEPS)]
        self.start = [self._normal(s) for s in SHAPES]
        self.zero_at_first = zero_at_first

    def _normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def train(self, cls: type[torch.optim.Optimizer], scheduled: bool, **options: Any) -> list[Tensor]:
        params = [p.clone().requires_grad_() for p in self.start]
        optimizer = cls(params, lr=0.02, **options)
        scheduler: LRScheduler | None = CosineAnnealingLR(optimizer, STEPS) if scheduled else None
        for step in range(STEPS):
            for p, target, curvature, noise in zip(params, self.target, self.curvature, self.noise[step], strict=True):
                p.grad = (curvature * (p.detach() - target) + noise).clone()
                if self.zero_at_first and step < 3 and p.dim() > 0:
                    p.grad[0] = 0.0
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        return [p.detach() for p in params]


@pytest.fixture(autouse=True)
def _their_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-adopt 0.1.0 calls a private method that torch has renamed since."""
    monkeypatch.setattr(adopt.ADOPT, "_cuda_graph_capture_health_check", lambda self: None, raising=False)


def assert_relative(p: torch.Tensor, q: torch.Tensor) -> None:
    """1e-12, relative to the element; for one that has come close to zero on its way 1e-14, relative to the largest."""
    torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14 * q.abs().max().item())


@pytest.mark.filterwarnings("ignore:.*is_compiling.*")
@pytest.mark.parametrize("backend", backends.NAMES)
@pytest.mark.parametrize("scheduled", [False, True], ids=["constant lr", "cosine lr"])
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_authors_single_tensor_code(mode: str, scheduled: bool, backend: str) -> None:
    for seed in range(3):
        problem = Problem(seed)
        theirs = problem.train(adopt.ADOPT, scheduled, foreach=False, **MODES[mode])
        ours = problem.train(ADOPT, scheduled, backend=backend, **MODES[mode])
        for p, q, start in zip(ours, theirs, problem.start, strict=True):
            assert_relative(p, q)
            assert not torch.equal(q, start)


@pytest.mark.filterwarnings("ignore:.*is_compiling.*")
@pytest.mark.parametrize("backend", backends.NAMES)
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_reference_where_first_gradients_are_zero(mode: str, backend: str) -> None:
    problem = Problem(0, zero_at_first=True)
    reference = problem.train(ADOPT, False, backend="reference", **MODES[mode])
    ours = problem.train(ADOPT, False, backend=backend, **MODES[mode])
    for p, q in zip(ours, reference, strict=True):
        assert_relative(p, q)
    theirs = problem.train(adopt.ADOPT, False, foreach=False, **MODES[mode])
    if "coupled" not in mode and mode != "maximize":  # there the decay alone makes the first gradient non-zero
        assert any(not torch.allclose(p, q, rtol=1e-6) for p, q in zip(reference, theirs, strict=True))


RETURNS: dict[str, tuple[list[float], dict[str, Any], torch.dtype]] = {  # gradients, options, dtype
    "a zero gradient at beta2 = 0": ([1.0, 1.0, 0.0, 1.0, 1.0], {"betas": (0.9, 0.0)}, torch.float64),
    "v underflows in float64": ([1.0, 1.0, *[0.0] * 350, 1.0, 1.0, 1.0], {"betas": (0.9, 0.1)}, torch.float64),
    "v underflows in float32": ([1.0, 1.0, *[0.0] * 50, 1.0, 1.0, 1.0], {"betas": (0.9, 0.1)}, torch.float32),
    "the first g*g underflows": ([1e-23, 1.0, 1.0, 1.0], {}, torch.float32),
    "every g*g underflows, and eps is small": ([1e-23] * 6, {"eps": 1e-24}, torch.float32),
    "every g*g underflows in float64": ([1e-170] * 6, {"eps": 1e-171}, torch.float64),
    "g*g is a small number, and eps is smaller": ([1e-20] * 6, {"eps": 1e-24}, torch.float32),
    "v underflows under decoupled weight decay": (
        [1.0, 1.0, *[0.0] * 50, 1.0, 1.0, 1.0],
        {"betas": (0.9, 0.1), "weight_decay": 0.1, "decouple": True},
        torch.float32,
    ),
}


def end_of(cls: type[torch.optim.Optimizer], name: str, **more: Any) -> Tensor:
    """Return where elements end that begin at 1: one with the gradients of that case, and one with ordinary ones."""
    gradients, options, dtype = RETURNS[name]
    p = torch.ones(2, dtype=dtype, requires_grad=True)
    optimizer = cls([p], lr=0.1, **options, **more)
    for i, g in enumerate(gradients):
        p.grad = torch.tensor([g, 1.0 + i % 3], dtype=dtype)
        optimizer.step()
    return p.detach()


@pytest.mark.filterwarnings("ignore:.*is_compiling.*")
@pytest.mark.parametrize("options", [{"backend": b} for b in backends.NAMES] + [{"capturable": True}], ids=str)
@pytest.mark.parametrize("name", RETURNS)
def test_an_element_whose_v_becomes_zero_goes_on(name: str, options: dict[str, Any]) -> None:
    ours, theirs = end_of(ADOPT, name, **options), end_of(adopt.ADOPT, name, foreach=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-12 if ours.dtype == torch.float64 else 1e-6, atol=0)
    assert (theirs != 1).all()
