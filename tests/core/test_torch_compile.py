"""`torch.compile` and ADOPT:

- a compiled `opt.step` equals the eager one: for every kind of number that may change from step to step (lr as a float,
  as a tensor, under a schedule, decoupled and coupled decay, clipping, beta2 warm-up), for two groups, for 16-bit and
  complex parameters, and when a parameter's first gradient comes late;
- it is compiled once: neither a growing `step` nor a new lr makes another program;
- a compiled function of a whole training step, `opt.step()` in it, works for every name of a backend.

Every day it runs with the compiler backend "eager", which is TorchDynamo alone (guards, recompilations, graph breaks)
and needs no C++ compiler, and once with inductor, which users get. The slow tests are the same with inductor and with
"aot_eager" (functionalisation too).

That nothing is recompiled is asked of TorchDynamo itself, `torch._dynamo.config.error_on_recompile`, which raises at
the first recompilation and says which guard failed; a counter of graphs would say that there was one, and would not see
that the limit of recompilations had been reached and the rest ran eagerly. A test at the end holds that it does raise.
"""

import copy
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from adopt_hf import ADOPT, backends
from adopt_hf.algorithm import StepScalars

pytestmark = pytest.mark.everyday
STEPS = 8
needs_cxx = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None,
    reason="inductor on a CPU needs a C++ compiler",
)
COMPILERS = [
    "eager",
    pytest.param("aot_eager", marks=pytest.mark.slow),
    pytest.param("inductor", marks=[pytest.mark.slow, needs_cxx]),
]

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "tensor lr": {"lr": torch.tensor(0.01, dtype=torch.float64)},
    "coupled": {"lr": 0.01, "weight_decay": 0.1},
    "decoupled": {"lr": 0.01, "weight_decay": 0.1, "decouple": True},
    "no clipping, beta2 warm-up": {"lr": 0.01, "clip_exp": None, "beta2_warmup": 0.65},
    "all": {
        "lr": torch.tensor(0.01),
        "betas": (0.8, 0.99),
        "eps": 1e-4,
        "weight_decay": 0.05,
        "decouple": True,
        "clip_exp": 0.5,
        "beta2_warmup": True,
        "maximize": True,
    },
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def leaves(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (5,), (), (2, 3))
    return [(torch.rand(s, generator=generator) * 2 - 1).to(dtype).requires_grad_() for s in shapes]


def give_gradients(params: list[Tensor], step: int) -> None:
    """Elements of +-0.5 to +-2, so that rounding errors are not amplified (see test_torch_properties)."""
    generator = torch.Generator().manual_seed(1 + step)
    for p in params:
        size, side = (torch.rand(p.shape, generator=generator, dtype=torch.float64) for _ in range(2))
        p.grad = ((0.5 + 1.5 * size) * torch.where(side < 0.5, -1.0, 1.0)).to(p.dtype)


def make(params: list[Tensor], **options: Any) -> ADOPT:
    """With two groups, of which the second has its own weight decay."""
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.2}]
    return ADOPT(groups, **copy.deepcopy(options))


def everything(optimizer: ADOPT) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [t.detach().clone() for p in params for t in (p, *optimizer.state[p].values())]


def assert_close(a: list[Tensor], b: list[Tensor], steps: int = STEPS) -> None:
    """Equal but for rounding: no number of the equations is larger than 5 here, a step rounds about ten times, and a
    compiler may fuse a multiplication and an addition, or not: 50 unit roundoffs a step. A stored 16-bit parameter may
    be rounded up in one and down in the other."""
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        bound = 50 * steps * torch.finfo(torch.float32).eps
        if x.dtype in (torch.bfloat16, torch.float16):
            bound += 5 * steps * torch.finfo(x.dtype).eps
        torch.testing.assert_close(x, y, rtol=0, atol=bound)


def set_lr(optimizer: ADOPT, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def compare(compiler: str, options: dict[str, Any], schedule: bool, dtype: torch.dtype = torch.float32) -> None:
    """Eight compiled steps are eight eager ones, and after the first nothing is compiled any more."""
    params, expected = leaves(dtype), leaves(dtype)
    optimizer, eager = make(params, **options), make(expected, backend="reference", **options)
    step = torch.compile(optimizer.step, backend=compiler)
    for i in range(STEPS):
        give_gradients(params, i)
        give_gradients(expected, i)
        if schedule:
            for each in (optimizer, eager):
                set_lr(each, 0.02 / (1 + i))
        with torch._dynamo.config.patch(error_on_recompile=i > 0):
            step()
        eager.step()
    assert counters["stats"]["unique_graphs"] == 1  # and it has been compiled, rather than run eagerly
    assert {float(s["step"]) for s in optimizer.state.values()} == {float(STEPS)}
    assert_close(everything(optimizer), everything(eager))


# -- a compiled opt.step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [False, True], ids=["constant lr", "lr changes each step"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_step_is_eager_step_and_compiles_once(compiler: str, options: dict[str, Any], schedule: bool) -> None:
    compare(compiler, options, schedule)


@pytest.mark.slow
@needs_cxx
def test_inductor_once() -> None:
    compare("inductor", OPTIONS["decoupled"], schedule=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_compiled_step_of_other_dtypes(compiler: str, dtype: torch.dtype) -> None:
    compare(compiler, OPTIONS["decoupled"], schedule=True, dtype=dtype)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_torchs_schedulers_do_not_recompile(compiler: str) -> None:
    """Tensor lr is what torch recommends under compile; a float works as well here."""
    for lr in (0.02, torch.tensor(0.02)):
        torch._dynamo.reset()
        trained = []
        for compiled in (True, False):
            params = leaves()
            optimizer = make(params, lr=copy.copy(lr))
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
            step = torch.compile(optimizer.step, backend=compiler) if compiled else optimizer.step
            for i in range(STEPS):
                give_gradients(params, i)
                with torch._dynamo.config.patch(error_on_recompile=i > 0):
                    step()
                scheduler.step()
            assert float(optimizer.param_groups[0]["lr"]) < 1e-3
            trained.append(everything(optimizer))
        assert_close(*trained)


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("decouple", [False, True], ids=["coupled", "decoupled"])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_schedules_of_other_numbers_do_not_recompile(compiler: str, decouple: bool, capturable: bool) -> None:
    """OneCycleLR changes beta1 with lr, others weight decay; a GradScaler's scale grows."""
    trained = []
    for compiled in (True, False):
        params = leaves()
        optimizer = make(params, lr=0.02, weight_decay=0.1, decouple=decouple, capturable=capturable)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=STEPS + 1)
        step = torch.compile(optimizer.step, backend=compiler) if compiled else optimizer.step
        beta1s = set()
        for i in range(STEPS):
            give_gradients(params, i)
            scale = 2.0 ** (i + 1)
            for p in params:
                p.grad *= scale
            optimizer.grad_scale = torch.tensor(scale)
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.1 / (1 + i)
            beta1s.add(optimizer.param_groups[0]["betas"][0])
            with torch._dynamo.config.patch(error_on_recompile=i > 0):
                step()
            schedule.step()
        assert len(beta1s) > STEPS // 2
        trained.append(everything(optimizer))
    assert_close(*trained)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_late_gradients(compiler: str) -> None:
    """A tensor whose first gradient comes late has its own step count, and so a program with one bucket more; from then
    on that is kept. Then one is frozen."""
    params, expected = leaves(), leaves()
    optimizer, eager = make(params, lr=0.01), make(expected, lr=0.01, backend="reference")
    step = torch.compile(optimizer.step, backend=compiler)
    for i in range(STEPS):
        for each in (params, expected):
            give_gradients(each, i)
            if i < 3:
                each[1].grad = None
            if i == 1:
                each[3].grad = torch.zeros_like(each[3])  # zero, but not the first
            if i >= 6:
                each[0].grad = None
        # New: the first step, the first with three buckets instead of two, the first without the frozen one.
        with torch._dynamo.config.patch(error_on_recompile=i not in (0, 3, 6)):
            step()
        eager.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [6, 5, 8, 8]
    assert counters["stats"]["unique_graphs"] == 3
    assert_close(everything(optimizer), everything(eager))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_first_gradients_of_zero_leave_no_trace(compiler: str) -> None:
    params = leaves()
    optimizer = make(params, **OPTIONS["decoupled"])
    step = torch.compile(optimizer.step, backend=compiler)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    assert all((t == 0).all() for state in optimizer.state.values() for t in state.values())


@pytest.mark.parametrize("compiler", COMPILERS)
def test_state_of_compiled_and_eager_steps_is_the_same(compiler: str) -> None:
    """Saved after compiled steps, it is loaded by an optimizer that is not compiled, and the other way round."""
    params, expected = leaves(), leaves()
    optimizer, eager = make(params, lr=0.01), make(expected, lr=0.01)
    step = torch.compile(optimizer.step, backend=compiler)
    for i in range(4):
        give_gradients(params, i)
        give_gradients(expected, i)
        step()
        eager.step()
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(copy.deepcopy(eager.state_dict()))
        eager.load_state_dict(saved)
    for own in optimizer.state.values():
        assert set(own) == {"step", "exp_avg", "exp_avg_sq"}
        assert own["step"].dtype == torch.float32
        assert own["step"].shape == ()
    assert_close(everything(optimizer), everything(eager))


# -- a compiled training step ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("backend", backends.NAMES)
def test_compiled_training_step(backend: str, compiler: str) -> None:
    data = torch.linspace(-1, 2, 30).view(10, 3)
    losses, weights = [], []
    for compiled in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        optimizer = ADOPT(model.parameters(), lr=0.01, weight_decay=0.01, decouple=True, backend=backend)

        def train_step(model: Any = model, optimizer: ADOPT = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = (model(data) - 1).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        run = torch.compile(train_step, backend=compiler) if compiled else train_step
        own = []
        for i in range(STEPS):
            # Two steps of warm-up: after the first, zero_grad finds gradients where there were none.
            with torch._dynamo.config.patch(error_on_recompile=compiled and i > 1):
                own.append(run().item())
        losses.append(own)
        weights.append([p.detach().clone() for p in model.parameters()])
    assert losses[0][-1] < losses[0][0]
    # The compiled forward and backward round in their own order. A gradient is a mean of ten terms, so its error is
    # some ten unit roundoffs (1e-6) of those, and a hundredfold of that (1e-4) relative to itself where they cancel.
    # The update passes on relative errors, times lr: 1e-6 a step, 1e-5 in all eight.
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# -- the tests themselves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changing", ["decay", "clip", "beta2", "lr"])
def test_a_number_left_as_a_float_is_noticed(monkeypatch: pytest.MonkeyPatch, changing: str) -> None:
    right = StepScalars.for_compiler
    monkeypatch.setattr(
        StepScalars, "for_compiler", lambda s: right(s)._replace(**{changing: float(getattr(s, changing))})
    )
    options = OPTIONS["decoupled"] | {"beta2_warmup": True}
    # TorchDynamo would make the float a tensor when it first changes, at the price of that one recompilation.
    with pytest.raises(torch._dynamo.exc.RecompileError):
        compare("eager", options, schedule=True)


@pytest.mark.parametrize(
    "wrong", [{"clip": 0.5}, {"beta2": 0.9}, {"decay": 1.0}, {"lr": 0.011}], ids=lambda x: next(iter(x))
)
def test_a_wrong_number_is_noticed(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, float]) -> None:
    right = StepScalars.for_compiler
    monkeypatch.setattr(
        StepScalars,
        "for_compiler",
        lambda s: right(s)._replace(**{k: torch.tensor(x, dtype=torch.float64) for k, x in wrong.items()}),
    )
    with pytest.raises(AssertionError):
        compare("eager", OPTIONS["decoupled"], schedule=False)
