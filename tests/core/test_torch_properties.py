"""The properties of torch's TestOptimRenewed, which no wheel of torch contains, with an `OptimizerInfo` for ADOPT.

Each holds for every input of the `OptimizerInfo`, every backend and every device of this machine. It is tried with
those of them that can change it:

- arguments: bad ones raise when the optimizer is built, a sparse gradient in `step`, before anything has changed;
- descent: the loss falls (rises with maximize), for contiguous and strided parameters, under one scheduler and under
  several; a group with lr 0 stays; a group is updated as if it were alone, with its own lr and weight decay;
- lr as a tensor is lr as a float, also under a scheduler; a complex parameter is its real view, and its two parts;
- backends agree with the reference: 0-d, empty and large tensors, strided ones, mixed dtypes (and devices), skipped
  backwards, a layer frozen and one unfrozen on the way; the default dtype and device do not matter; memory stays low;
- no gradient: nothing happens; zero gradients at the start: neither; otherwise the state is there after one step;
- saving: `state_dict` is deterministic and survives `torch.save`, `weights_only=True`, another dtype and device, `step`
  as a number, a missing option, parameters with and without names; pickle and deepcopy keep all;
- hooks: before and after `step` (for this optimizer, or for all), `state_dict`, `load_state_dict`, in order;
- `step(closure)` calls it once, with gradients, and returns its loss; no_grad and inference mode change nothing;
- with a GradScaler an overflow skips the step, the first one too, and the rest is what it is without scaler.

Left out, since ADOPT has no such option: capturable, differentiable, sparse gradients, several GPUs in one process.
Wrong optimizers are planted at the end, and the properties must reject them.
"""

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from adopt_hf import ADOPT, backends
from adopt_hf.algorithm import state_dtype
from adopt_hf.hyperparameters import OPTIONS, of_group
from tests.support.tensors import assert_same

# Importing torch's test helpers forbids this process to assign torch.backends flags, which transformers' tests do.
with mock.patch("torch.backends.disable_global_flags"):
    from torch.testing._internal.common_optimizers import (
        ErrorOptimizerInput,
        OptimizerErrorEnum,
        OptimizerInfo,
        OptimizerInput,
        get_error_inputs_for_all_optims,
    )

BACKENDS = backends.NAMES
DEVICES = ("cpu", *(("cuda",) if torch.cuda.is_available() else ()))


def optim_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    options: dict[str, dict[str, Any]] = {
        "default": {},
        "lr": {"lr": 0.01},
        "tensor lr": {"lr": torch.tensor(0.01)},
        "one-element lr on the device": {"lr": torch.tensor([0.01], device=device, dtype=torch.float64)},
        "weight decay": {"weight_decay": 0.1},
        "weight decay, maximize": {"weight_decay": 0.1, "maximize": True},
        "decoupled": {"weight_decay": 0.1, "decouple": True},
        "decoupled, maximize": {"weight_decay": 0.1, "decouple": True, "maximize": True},
        "decoupled, tensor lr": {"weight_decay": 0.1, "decouple": True, "lr": torch.tensor(0.02)},
        "no clipping": {"clip_exp": None},
        "constant clipping": {"clip_exp": 0.0},
        "clipping opens fast": {"clip_exp": 1.0},
        "beta2 warm-up": {"beta2_warmup": True},
        "betas small": {"betas": (0.3, 0.7)},
        "betas zero": {"betas": (0.0, 0.0)},
        "eps large": {"eps": 0.5},
        "eps zero": {"eps": 0.0},
        "everything": {
            "lr": torch.tensor(0.005),
            "betas": (0.8, 0.99),
            "eps": 1e-4,
            "weight_decay": 0.05,
            "decouple": True,
            "clip_exp": 0.5,
            "beta2_warmup": True,
            "maximize": True,
        },
    }
    return [OptimizerInput(params=None, kwargs=kwargs, desc=desc) for desc, kwargs in options.items()]


def optim_error_inputs(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """torch's, for all optimizers, and ours."""
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"lr": -1e-3}, ValueError, r"lr must be a finite number >= 0, got -0\.001"),
        ({"lr": math.nan}, ValueError, "lr must be .* got nan"),
        ({"lr": math.inf}, ValueError, "lr must be .* got inf"),
        ({"lr": None}, ValueError, "lr must be .* got None"),
        ({"lr": torch.tensor(-1.0)}, ValueError, r"lr must be .* got -1\.0"),
        ({"lr": torch.tensor(1)}, ValueError, "Tensor lr must be floating point, got torch.int64"),
        ({"lr": torch.empty(0)}, ValueError, r"Tensor lr must be 1-element, got shape \(0,\)"),
        ({"lr": torch.empty((), device="meta")}, ValueError, "Tensor lr must hold a number, got .* meta"),
        ({"betas": (1.0, 0.0)}, ValueError, r"beta1 .* in \[0, 1\), got 1\.0"),
        ({"betas": (0.0, 1.0)}, ValueError, r"beta2 .* in \[0, 1\), got 1\.0"),
        ({"betas": (0.9, -0.1)}, ValueError, r"beta2 .* got -0\.1"),
        ({"betas": (0.9,)}, ValueError, r"betas must be a pair .* got \(0\.9,\)"),
        ({"betas": 0.9}, ValueError, r"betas must be a pair .* got 0\.9"),
        ({"eps": -1e-6}, ValueError, "eps must be .* got -1e-06"),
        ({"weight_decay": -1}, ValueError, "weight_decay must be .* got -1"),
        ({"clip_exp": -0.25}, ValueError, r"clip_exp must be .* or None, got -0\.25"),
        ({"clip_exp": "0.25"}, ValueError, "clip_exp must be .* got '0.25'"),
        ({"decouple": "False"}, ValueError, "decouple must be True or False, got 'False'"),
        ({"beta2_warmup": 1.5}, ValueError, "beta2_warmup must be True, False or a number in .* got 1.5"),
        ({"maximize": None}, ValueError, "maximize must be True or False, got None"),
        ({"backend": "cuda"}, ValueError, "backend must be one of 'auto', .* got 'cuda'"),
        ({"foreach": True}, TypeError, "no argument 'foreach': write backend='foreach'"),
        ({"capturable": None}, ValueError, "capturable must be True or False, got None"),
        ({"clip_lambda": abs}, TypeError, "no argument 'clip_lambda': write clip_exp=0.25"),
        ({"momentum": 0.9}, TypeError, "no argument 'momentum'"),
    ]
    leaf = torch.zeros(2, 2, device=device, dtype=dtype, requires_grad=True)
    unusable: list[tuple[Any, type[Exception], str]] = [
        ([], ValueError, "empty parameter list"),
        ([leaf * 2], ValueError, "can't optimize a non-leaf Tensor"),
        (["weight"], TypeError, "optimizer can only optimize Tensors"),
        ([{"params": [leaf], "lr": -1.0}], ValueError, "lr must be"),
        ([{"params": [leaf], "fused": True}], TypeError, "no param group option 'fused'"),
    ]
    sparse = torch.zeros(2, 2, device=device, dtype=dtype, requires_grad=True)
    sparse.grad = torch.ones_like(sparse).to_sparse()
    return [
        *get_error_inputs_for_all_optims(device, dtype),
        *(
            ErrorOptimizerInput(OptimizerInput(None, kwargs, str(kwargs)), error_type=error, error_regex=regex)
            for kwargs, error, regex in refused
        ),
        *(
            ErrorOptimizerInput(OptimizerInput(params, {}, regex), error_type=error, error_regex=regex)
            for params, error, regex in unusable
        ),
        ErrorOptimizerInput(
            OptimizerInput([sparse], {}, "sparse gradient"),
            error_on=OptimizerErrorEnum.STEP_ERROR,
            error_type=RuntimeError,
            error_regex="ADOPT does not support sparse gradients .*use sparse=False",
        ),
    ]


def step_lr(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.StepLR(optimizer, gamma=0.9, step_size=3)


def plateau(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)


def linear(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LinearLR(optimizer, start_factor=0.4, total_iters=12)


def cosine(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=1e-4)


ADOPT_INFO = OptimizerInfo(
    ADOPT,
    optim_inputs_func=optim_inputs,
    optim_error_inputs_func=optim_error_inputs,
    scheduler_inputs=([], [step_lr], [linear], [cosine], [step_lr, plateau]),
    supported_impls=BACKENDS,
    not_og_supported_flags=(*OPTIONS,),
    supports_sparse=False,
    supports_complex=True,
)


@dataclass(frozen=True)
class Case:
    """A row of the matrix. `make` builds its optimizer, each time with options (and tensors in them) of its own."""

    backend: str
    device: str = "cpu"
    desc: str = "default"
    cls: type[ADOPT] = ADOPT

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}-{self.desc}"

    @property
    def options(self) -> dict[str, Any]:
        (found,) = (x.kwargs for x in ADOPT_INFO.optim_inputs_func(self.device) if x.desc == self.desc)
        return {**found, "backend": self.backend}

    @property
    def maximize(self) -> bool:
        return bool(self.options.get("maximize"))

    def make(self, params: Any, **options: Any) -> ADOPT:
        return self.cls(params, **(self.options | options))

    def leaves(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Parameters in [-1, 1)."""
        generator = torch.Generator().manual_seed(0)
        return [
            (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1)
            .to(self.device, dtype, copy=True)
            .requires_grad_()
            for shape in shapes
        ]


CASES = [Case(b, d, x.desc) for b in BACKENDS for d in DEVICES for x in ADOPT_INFO.optim_inputs_func(d)]
REFERENCE = [case for case in CASES if case.backend == "reference"]
TWO_INPUTS = [case for case in CASES if case.desc in ("default", "everything")]
# A property is asked of what can change it. An option reaches every backend through the same bucket, so that all inputs
# are tried on the reference, and two of them on each backend; test_equals_the_reference tries all of both.
EVERY_OPTION = [case for case in CASES if case in REFERENCE or case in TWO_INPUTS]
ONCE = [case for case in REFERENCE if case in TWO_INPUTS]
every_option = pytest.mark.parametrize("case", EVERY_OPTION, ids=str)
every_backend = pytest.mark.parametrize("case", TWO_INPUTS, ids=str)
only_options = pytest.mark.parametrize("case", REFERENCE, ids=str)  # no backend can change it
once = pytest.mark.parametrize("case", ONCE, ids=str)  # and no option can


def under(name: str, schedulers: Sequence[Any]) -> pytest.MarkDecorator:
    """Every option without a scheduler. One writes a number into the groups, and no option or backend changes that."""
    return pytest.mark.parametrize(
        ("case", name),
        [
            pytest.param(case, made, id=f"{case}-{number}")
            for number, made in enumerate(schedulers)
            for case in (ONCE if made else EVERY_OPTION)
        ],
    )


def gradient(like: Tensor, step: int) -> Tensor:
    """Of elements +-0.5 to +-2 (so are the parts of complex ones): first gradients near zero would make everything
    after them, and rounding too, as large as you like, and no tolerance could be derived."""
    shape = torch.view_as_real(like.detach()).shape if like.is_complex() else like.shape
    generator = torch.Generator().manual_seed(1 + step)
    size, side = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    g = (0.5 + 1.5 * size) * torch.where(side < 0.5, -1.0, 1.0)
    return (torch.view_as_complex(g) if like.is_complex() else g).to(like.device, like.dtype)


def train(optimizer: ADOPT, steps: Iterable[int]) -> None:
    for step in steps:
        for p in params_of(optimizer):
            p.grad = gradient(p, step)
        optimizer.step()


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def everything(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Copies of all parameters and all state, in order."""
    params = params_of(optimizer)
    return [t.detach().clone() for p in params for t in (p, *(optimizer.state.get(p) or {}).values())]


def assert_close(a: list[Tensor], b: list[Tensor], steps: int) -> None:
    """Equal but for rounding. With gradients of `gradient` and parameters in [-1, 1], no number of the equations is
    larger than 5, errors are not amplified (v >= 0.2), and a step rounds about ten times: 50 unit roundoffs a step.
    A 16-bit parameter is rounded once more a step, and one unit in its last place is lost where that goes both ways.
    """
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        unit = torch.finfo(state_dtype(x.dtype)).eps
        bound = 50 * steps * unit
        if x.dtype != state_dtype(x.dtype):
            bound += 5 * steps * torch.finfo(x.dtype).eps
        torch.testing.assert_close(x, y.to(x.device), rtol=0, atol=bound)


# -- the matrix --------------------------------------------------------------------------------------------------------


def test_the_inputs_leave_no_hyperparameter_out() -> None:
    arguments = set(inspect.signature(ADOPT).parameters) - {"params", "backend", "capturable", "unknown"}
    arguments -= {*of_group("storage"), "seed", "float32_apart"}  # tests/state/test_formats.py
    arguments.remove("regroup")  # tests/integrations/transformers/test_groups.py
    assert arguments == set(of_group("update")) - {"seed"}
    varied = [x.kwargs for x in ADOPT_INFO.optim_inputs_func("cpu")]
    assert {name for kwargs in varied for name in kwargs} == arguments
    assert any(isinstance(kwargs.get("lr"), Tensor) for kwargs in varied)
    assert len(CASES) == len(BACKENDS) * len(DEVICES) * len(varied) >= 3 * 18
    assert {case.backend for case in TWO_INPUTS} == set(BACKENDS) >= {"auto", "foreach", "reference"}


def test_importing_torchs_helpers_has_not_frozen_the_flags() -> None:
    assert not torch.backends.flags_frozen()


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_errors(device: str) -> None:
    inputs = ADOPT_INFO.optim_error_inputs_func(device, torch.float32)
    assert len(inputs) > 25
    for x in inputs:
        given = x.optimizer_error_input
        params = given.params if given.params is not None else [torch.zeros(2, 2, device=device, requires_grad=True)]
        kwargs = given.kwargs
        if x.error_on is OptimizerErrorEnum.STEP_ERROR:
            optimizer = ADOPT(params, **kwargs)
            with pytest.raises(x.error_type, match=x.error_regex):
                optimizer.step()
        elif issubclass(x.error_type, Warning):
            with pytest.warns(x.error_type, match=x.error_regex):
                ADOPT(params, **kwargs)
        else:
            with pytest.raises(x.error_type, match=x.error_regex):
                ADOPT(params, **kwargs)


@once
def test_a_sparse_gradient_raises_before_anything_changes(case: Case) -> None:
    a, b = case.leaves((3, 4), (4, 3))
    optimizer = case.make([{"params": [a]}, {"params": [b]}])
    train(optimizer, range(2))
    before = everything(optimizer)
    a.grad, b.grad = gradient(a, 2), gradient(b, 2).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert_same(everything(optimizer), before)
    train(optimizer, [2])  # and goes on


# -- descent -----------------------------------------------------------------------------------------------------------


def schedule(schedulers: Iterable[Any], loss: Tensor) -> None:
    for scheduler in schedulers:
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss.item())
        else:
            scheduler.step()


def linear_model(case: Case, strided: bool = False) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Weight, bias, and a function of the loss and its gradients."""
    if strided:
        weight, bias = (p.detach()[..., 0].requires_grad_() for p in case.leaves((10, 5, 2), (10, 2)))
        assert not weight.is_contiguous()
        assert not bias.is_contiguous()
    else:
        weight, bias = case.leaves((10, 5), (10,))
    data = torch.linspace(-1, 2, 5, device=case.device)

    def closure() -> Tensor:
        weight.grad = bias.grad = None
        loss = (weight.mv(data) + bias).square().sum()
        loss.backward()
        return loss

    return weight, bias, closure


@under("schedulers", ADOPT_INFO.scheduler_inputs)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_goes_in_the_right_direction(case: Case, schedulers: list[Any], strided: bool) -> None:
    weight, bias, closure = linear_model(case, strided)
    optimizer = case.make([weight, bias])
    running = [make(optimizer) for make in schedulers]
    first = closure().item()
    for _ in range(20):
        schedule(running, optimizer.step(closure))
    last = closure().item()
    assert last > first if case.maximize else last < first


@under("schedulers", ADOPT_INFO.scheduler_inputs)
def test_group_with_lr_0_stays_and_the_other_goes_in_the_right_direction(case: Case, schedulers: list[Any]) -> None:
    weight, bias, closure = linear_model(case)
    # CosineAnnealingLR lifts 0 to its eta_min
    schedulers = [make for make in schedulers if make is not cosine]
    optimizer = case.make([{"params": [weight]}, {"params": [bias], "lr": 0.0}])
    running = [make(optimizer) for make in schedulers]
    before, first = bias.detach().clone(), closure().item()
    for _ in range(20):
        schedule(running, optimizer.step(closure))
    last = closure().item()
    assert last > first if case.maximize else last < first
    assert torch.equal(bias, before)
    assert optimizer.state[bias]["step"] == 20


@every_backend
@pytest.mark.parametrize(
    "own",
    [{"lr": 0.03}, {"weight_decay": 0.2}, {"weight_decay": 0.0}, {"decouple": True}, {"maximize": True}, {"eps": 1.0}],
    ids=str,
)
def test_a_group_is_updated_as_if_it_were_alone(case: Case, own: dict[str, Any]) -> None:
    a, b = case.leaves((3, 4), (5,))
    alone_a, alone_b = case.leaves((3, 4), (5,))
    optimizer = case.make([{"params": [a]}, {"params": [b], **own}])
    alone = [ADOPT([alone_a], **case.options), ADOPT([alone_b], **(case.options | own))]
    for each in (optimizer, *alone):
        train(each, range(5))
    assert_same(everything(optimizer), [t for each in alone for t in everything(each)])


@every_backend
def test_weight_decay_of_a_group_shrinks_that_group_alone(case: Case) -> None:
    decayed, plain = case.leaves((4,), (4,))
    with torch.no_grad():
        for p in (decayed, plain):
            p.fill_(2.0)
    groups = [{"params": [decayed], "weight_decay": 0.5}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = case.make(groups, maximize=False, decouple=True)
    train(optimizer, range(10))
    assert (decayed < plain).all()


# -- lr as a tensor, complex parameters --------------------------------------------------------------------------------


@under("make_scheduler", [None, step_lr, linear])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_tensor_lr_is_float_lr(case: Case, make_scheduler: Any, dtype: torch.dtype) -> None:
    rate, steps = 0.05, 8
    trained = []
    for lr in (rate, torch.tensor(rate, dtype=dtype, device=case.device)):
        optimizer = case.make(case.leaves((3, 4), (5,), ()), lr=lr)
        scheduler = make_scheduler(optimizer) if make_scheduler else None
        for step in range(steps):
            train(optimizer, [step])
            if scheduler:
                scheduler.step()
        trained.append(everything(optimizer))
        rates = [group["lr"] for group in optimizer.param_groups]
        assert all(isinstance(r, Tensor) == isinstance(lr, Tensor) for r in rates)
        assert make_scheduler is None or abs(float(rates[0]) - rate) > 1e-3  # the scheduler has reached it
    # The first schedulers write lr in Python floats, so a float64 tensor holds them exactly; a float32 one rounds them,
    # by less than a unit roundoff of theta a step.
    if dtype == torch.float64:
        assert_same(*trained)
    else:
        assert_close(*trained, steps=steps)


@every_option
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_is_its_real_view(case: Case, dtype: torch.dtype) -> None:
    (z,) = case.leaves((5, 3), dtype=dtype)
    with torch.no_grad():
        z += 1j * torch.linspace(-1, 1, 15, device=case.device).view(5, 3)
    x = torch.view_as_real(z.detach().clone()).requires_grad_()
    optimizers = case.make([z]), ADOPT([x], **case.options)
    for step in range(5):
        z.grad = gradient(z, step)
        if step == 3:
            z.grad = z.grad.conj()  # autograd returns such, lazily conjugated
        x.grad = torch.view_as_real(z.grad.resolve_conj()).clone()
        for optimizer in optimizers:
            optimizer.step()
        states = [optimizer.state[p] for optimizer, p in zip(optimizers, (z, x), strict=True)]
        for name in ("exp_avg", "exp_avg_sq"):
            assert_same([torch.view_as_real(states[0][name])], [states[1][name]])
        assert_same([torch.view_as_real(z.detach())], [x.detach()])


@every_option
def test_complex_is_its_two_parts(case: Case) -> None:
    """With gradients from autograd: of Rosenbrock's function at two complex numbers."""
    (z,) = case.leaves((2,), dtype=torch.complex128)
    with torch.no_grad():
        z += torch.tensor([0.3j, -0.4j], device=case.device)
    real, imag = (part.detach().clone().requires_grad_() for part in (z.real, z.imag))
    whole, parts = case.make([z]), ADOPT([real, imag], **case.options)

    def loss(a: Tensor) -> Tensor:
        return ((1 - a[0]) ** 2 + 100 * (a[1] - a[0] ** 2) ** 2).abs()

    for _ in range(6):
        whole.zero_grad()
        parts.zero_grad()
        loss(z).backward()
        loss(torch.complex(real, imag)).backward()
        assert z.grad is not None
        assert real.grad is not None
        # Both ways through autograd round alike or not, depending on the kernels; the optimizer must not see that.
        real.grad, imag.grad = z.grad.real.clone(), z.grad.imag.clone()
        whole.step()
        parts.step()
        # Not assert_close: these gradients span many orders of magnitude. The two run the same elementwise operations,
        # whose rounding may depend on an element's place (vector or remainder), a unit each time.
        torch.testing.assert_close(z.real, real, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(z.imag, imag, rtol=1e-12, atol=1e-13)


# -- backends ----------------------------------------------------------------------------------------------------------


def assorted(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Contiguous, strided, transposed, one element, 0-d, empty, two layers more."""
    params = case.leaves((3, 4), (4, 3, 2), (5, 6), (1,), (), (0,), (0, 3), (7,), (2, 2), dtype=dtype)
    params[1] = params[1].detach()[..., 1].requires_grad_()
    params[2] = params[2].detach().t().requires_grad_()
    return params


def train_unevenly(optimizer: ADOPT, params: list[Tensor], steps: int) -> None:
    """As `train`, with a skipped backward, the last layer frozen from the fourth step on, and the one before it until
    then, one tensor that gets no gradient at all in one step, and one whose first gradient is zero in half of it."""
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = gradient(p, step)
            if i == 0 and step < 2:
                p.grad[0] = 0
        params[4].grad = None if step == 2 else params[4].grad
        (params[-1] if step >= 3 else params[-2]).grad = None
        if step == 5:
            optimizer.zero_grad()
        optimizer.step()


@pytest.mark.parametrize("case", [c for c in CASES if c.backend not in ("auto", "reference")], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str
)
def test_equals_the_reference(case: Case, dtype: torch.dtype) -> None:
    trained = []
    for variant in (case, replace(case, backend="reference", cls=ADOPT)):
        params = assorted(case, dtype)
        optimizer = variant.make(params)
        train_unevenly(optimizer, params, steps=8)
        counts = [float(optimizer.state[p]["step"]) for p in params]
        assert counts == [7, 7, 7, 7, 6, 0, 0, 4, 3]
        trained.append(everything(optimizer))
    # Zero elements at first, and no clipping or eps at all: the scale of `gradient` holds from an element's second
    # gradient on, its first one is not used.
    assert_close(*trained, steps=8)


@every_option
def test_mixed_dtypes_and_devices(case: Case) -> None:
    """One list of all dtypes (and, with a GPU, of both devices) is every one of them alone, bit for bit."""
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64)
    devices = {case.device, "cpu"}
    together = [p for d in sorted(devices) for t in dtypes for p in replace(case, device=d).leaves((3, 4), (), dtype=t)]
    alone = [p.detach().clone().requires_grad_() for p in together]
    mixed = case.make(together)
    each = [ADOPT([p], **case.options) for p in alone]
    for optimizer in (mixed, *each):
        train(optimizer, range(5))
    assert len(together) >= 10
    assert_same(everything(mixed), [t for optimizer in each for t in everything(optimizer)])


@every_backend
def test_master_weights_with_gradients_of_another_dtype(case: Case) -> None:
    """16-bit gradients of a float32 parameter (torch 2.12's grad_dtype, or frameworks) are their float32 values."""
    (p,), (q,) = case.leaves((3, 4)), case.leaves((3, 4))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("this torch refuses a gradient of another dtype than the parameter's")
    p.grad_dtype = torch.bfloat16
    optimizers = case.make([p]), case.make([q])
    for step in range(4):
        p.grad = gradient(p, step).bfloat16()
        q.grad = p.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    assert_same(everything(optimizers[0]), everything(optimizers[1]))


@every_backend
@pytest.mark.parametrize("default", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_default_dtype_does_not_matter(case: Case, default: torch.dtype) -> None:
    trained = []
    params = [assorted(case, torch.float32), assorted(case, torch.float32)]
    for own, dtype in zip(params, (torch.float32, default), strict=True):
        torch.set_default_dtype(dtype)
        try:
            # Tensor lr have been made with the default dtype: not what is tested here.
            optimizer = case.make(own, lr=0.01)
            train_unevenly(optimizer, own, steps=5)
            restored = case.make(own, lr=0.01)
            restored.load_state_dict(optimizer.state_dict())
        finally:
            torch.set_default_dtype(torch.float32)
        assert {s["step"].dtype for s in restored.state.values()} == {torch.float32}
        trained.append(everything(restored))
    assert_same(*trained)


@every_backend
def test_default_device_does_not_matter(case: Case) -> None:
    trained = []
    for device in (case.device, "meta"):
        params = assorted(case, torch.float32)
        for p in params:
            p.grad = gradient(p, 0)
        with torch.device(device):
            optimizer = case.make(params, lr=0.01)
            for _ in range(3):
                optimizer.step()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.step()
        trained.append(everything(optimizer))
    assert_same(*trained)


@every_backend
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_large_tensors(case: Case, strided: bool) -> None:
    """Larger than what foreach takes at once on a CPU, by an odd number, next to small ones."""
    trained = []
    for variant in (case, replace(case, backend="reference", cls=ADOPT)):
        params = case.leaves((2**18 + 7, 2) if strided else (2**19 + 7,), (3,))
        if strided:
            params[0] = params[0].detach()[:, 1].requires_grad_()
        optimizer = variant.make(params)
        train(optimizer, range(3))
        trained.append(everything(optimizer))
    assert_close(*trained, steps=3)


@every_backend
def test_empty_and_0d_tensors(case: Case) -> None:
    empty, none, scalar = case.leaves((0,), (3, 0, 2), ())
    optimizer = case.make([empty, none, scalar])
    before = scalar.item()
    train(optimizer, range(3))
    assert empty.shape == (0,)
    assert none.shape == (3, 0, 2)
    assert scalar.item() != before
    assert optimizer.state[empty]["step"] == 0  # it never has observed anything
    assert optimizer.state[scalar]["step"] == 3
    assert_same(everything(optimizer), everything(reload(case, optimizer)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the caching allocator's peak needs a CUDA device")
def test_peak_memory_of_foreach() -> None:
    """Temporaries of a step: u, the quotient beside it, the mask (a byte), and no more; coupled decay: g as well."""
    for options, copies in (({}, 2.25), ({"weight_decay": 0.1}, 3.25)):
        (p,) = Case("foreach", "cuda").leaves((2**24,))
        optimizer = ADOPT([p], backend="foreach", **options)
        train(optimizer, range(2))  # allocates the state
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        torch.cuda.synchronize()
        extra = torch.cuda.max_memory_allocated() - before
        assert extra <= copies * p.numel() * p.element_size() + 2**21  # the allocator's rounding


# -- nothing to do -----------------------------------------------------------------------------------------------------


@only_options
def test_no_gradients_no_change(case: Case) -> None:
    params = assorted(case, torch.float32)
    optimizer = case.make(params)
    before = everything(optimizer)
    optimizer.step()
    assert_same(everything(optimizer), before)
    assert not optimizer.state
    train(optimizer, range(3))
    before = everything(optimizer)
    assert len(before) == 4 * len(params)
    optimizer.zero_grad()
    optimizer.step()
    assert_same(everything(optimizer), before)


@every_option
def test_zero_gradients_at_the_start_no_change(case: Case) -> None:
    params = assorted(case, torch.float32)
    optimizer = case.make(params)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.zeros_like(p)
    for _ in range(3):
        optimizer.step()
    assert_same([p.detach() for p in params], before)
    assert all((t == 0).all() for state in optimizer.state.values() for t in state.values())


@every_backend
def test_state_is_there_after_a_step(case: Case) -> None:
    params = case.leaves((3, 4), (5,))
    optimizer = case.make(params)
    assert not optimizer.state
    train(optimizer, [0])
    assert set(optimizer.state) == set(params)
    for p in params:
        state = optimizer.state[p]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert state["step"].shape == ()
        assert state["step"] == 1
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == p.shape
        assert (state["exp_avg_sq"] > 0).all()


@once
def test_printable(case: Case) -> None:
    optimizer = case.make([{"params": case.leaves((3,))}, {"params": case.leaves((4,)), "lr": 0.125}])
    text = repr(optimizer)
    assert text.startswith("ADOPT (")
    assert "Parameter Group 1" in text
    assert "lr: 0.125" in text
    assert all(f"{name}: " in text for name in optimizer.defaults)


# -- saving and loading ------------------------------------------------------------------------------------------------


def reload(case: Case, optimizer: ADOPT, state: dict[str, Any] | None = None) -> ADOPT:
    """A new optimizer of copies of the parameters, with the state of `optimizer` (or `state`)."""
    params = [p.detach().clone(memory_format=torch.preserve_format).requires_grad_() for p in params_of(optimizer)]
    restored = case.make(params)
    restored.load_state_dict(copy.deepcopy(state or optimizer.state_dict()))
    return restored


def trained_and(case: Case, change: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[ADOPT, ADOPT]:
    """A trained optimizer and one that loaded its state as changed by `change`, both trained on."""
    optimizer = case.make(case.leaves((3, 4), (5,), ()))
    train(optimizer, range(3))
    restored = reload(case, optimizer, change(copy.deepcopy(optimizer.state_dict())))
    for each in (optimizer, restored):
        train(each, range(3, 6))
    return optimizer, restored


@every_backend
def test_state_dict_is_deterministic(case: Case) -> None:
    saved = []
    for _ in range(2):
        optimizer = case.make(case.leaves((3, 4), (5,), ()))
        train(optimizer, range(3))
        saved.append(optimizer.state_dict())
    first, second = saved
    assert list(first["state"]) == list(second["state"]) == [0, 1, 2]
    assert first["param_groups"] == second["param_groups"]
    for i in first["state"]:
        assert_same(list(first["state"][i].values()), list(second["state"][i].values()))
    # Loading leaves what is loaded as it was, and what comes out is what went in.
    kept = copy.deepcopy(first)
    restored = case.make(case.leaves((3, 4), (5,), ()))
    restored.load_state_dict(first)
    for other in (first, restored.state_dict()):
        assert other["param_groups"] == kept["param_groups"]
        for i in kept["state"]:
            assert list(other["state"][i]) == list(kept["state"][i])
            assert_same(list(other["state"][i].values()), list(kept["state"][i].values()))


@only_options
def test_save_load_equality(case: Case) -> None:
    def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
        assert loaded["param_groups"] == state["param_groups"]
        return loaded

    optimizer, restored = trained_and(case, through_a_file)
    assert_same(everything(restored), everything(optimizer))


@once
@pytest.mark.parametrize("convert", [float, int, lambda t: t.to(torch.int64), lambda t: t.view(1)])
def test_step_may_have_been_saved_as_something_else(case: Case, convert: Callable[[Tensor], Any]) -> None:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        for own in state["state"].values():
            own["step"] = convert(own["step"])
        return state

    optimizer, restored = trained_and(case, change)
    assert_same(everything(restored), everything(optimizer))


@only_options
def test_state_of_an_older_version_without_an_option(case: Case) -> None:
    here = case.make(case.leaves(())).param_groups[0]
    flags = ADOPT_INFO.not_og_supported_flags
    assert set(flags) == here.keys() - {"params"}
    for missing in flags:

        def change(state: dict[str, Any], missing: str = missing) -> dict[str, Any]:
            groups = [{k: v for k, v in group.items() if k != missing} for group in state["param_groups"]]
            return state | {"param_groups": groups}

        optimizer, restored = trained_and(case, change)
        begun_with = here | {"beta2_warmup": False}  # what lacks it was trained without
        assert restored.param_groups[0][missing] == begun_with[missing]
        if here[missing] == begun_with[missing]:
            assert_same(everything(restored), everything(optimizer))


@once
def test_unpickled_groups_of_an_older_version_get_the_defaults(case: Case) -> None:
    optimizer = case.make(case.leaves((3, 4)))
    train(optimizer, range(2))
    older = pickle.loads(pickle.dumps(optimizer))
    for name in ("beta2_warmup", "backend", "decouple"):
        del older.param_groups[0][name], older.defaults[name]
    restored = pickle.loads(pickle.dumps(older))
    assert restored.param_groups[0].keys() == optimizer.param_groups[0].keys()
    train(restored, [2])


@once
def test_groups_of_a_loaded_optimizer_make_another_one(case: Case) -> None:
    """As frameworks do that rebuild an optimizer; loading must leave no option in them that ADOPT refuses."""
    optimizer = case.make(case.leaves((3, 4)))
    train(optimizer, range(2))
    optimizer.load_state_dict(optimizer.state_dict())
    (group,) = optimizer.param_groups
    another = ADOPT([group | {"params": case.leaves((5,))}])
    another.add_param_group(group | {"params": case.leaves((6,))})
    assert {k: v for k, v in another.param_groups[1].items() if k != "params"} == {
        k: v for k, v in group.items() if k != "params"
    }


@once
@pytest.mark.parametrize("named_here", [False, True], ids=["into plain", "into named"])
@pytest.mark.parametrize("named_there", [False, True], ids=["from plain", "from named"])
def test_parameters_with_and_without_names(case: Case, named_there: bool, named_here: bool) -> None:
    def make(named: bool, *names: str) -> ADOPT:
        params = case.leaves((3, 4), (5,))
        return case.make(list(zip(names, params, strict=True)) if named else params)

    source, target = make(named_there, "a", "b"), make(named_here, "c", "d")
    train(source, range(3))
    train(target, range(3))
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    # torch's rule: names that come with the state replace those here, and their absence changes nothing
    expected = ["a", "b"] if named_there else ["c", "d"] if named_here else None
    assert target.param_groups[0].get("param_names") == expected
    for each in (source, target):
        train(each, range(3, 5))
    assert_same(everything(target), everything(source))


@once
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["meta", *DEVICES])
def test_loaded_state_follows_the_parameters_and_step_stays(case: Case, dtype: torch.dtype, device: str) -> None:
    optimizer = case.make(case.leaves((3, 4), (5,)))
    train(optimizer, range(3))
    params = [p.detach().to(device, dtype).requires_grad_() for p in params_of(optimizer)]
    restored = case.make(params)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert len(restored.state) == 2
    for p, q in zip(params_of(optimizer), params, strict=True):
        old, new = optimizer.state[p], restored.state[q]
        assert new["step"].device.type == "cpu"
        assert new["step"].dtype == torch.float32
        assert new["step"] == 3
        for name in ("exp_avg", "exp_avg_sq"):
            assert new[name].device.type == device
            assert new[name].dtype == state_dtype(dtype)
            if device != "meta":
                assert torch.equal(new[name].cpu().double(), old[name].cpu().double())
    if device != "meta":
        train(restored, [3])


@once
def test_load_refuses_other_groups_and_other_shapes(case: Case) -> None:
    optimizer = case.make(case.leaves((3, 4), (5,)))
    train(optimizer, range(2))
    state = optimizer.state_dict()
    a, b = case.leaves((3, 4), (5,))
    for params, message in (
        ([a], "doesn't match the size"),
        ([{"params": [a]}, {"params": [b]}], "different number of parameter groups"),
        (case.leaves((3, 4), (6,)), "another model"),
    ):
        other = case.make(params)
        train(other, range(1))
        before = everything(other)
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert_same(everything(other), before)


@once
@pytest.mark.parametrize("route", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_are_whole_and_apart(case: Case, route: Callable[[ADOPT], ADOPT]) -> None:
    optimizer = case.make(case.leaves((3, 4), (5,)))
    train(optimizer, range(3))
    before = everything(optimizer)
    twin = route(optimizer)
    assert type(twin) is type(optimizer)
    public = [{name for name in vars(x) if not name.startswith("_")} for x in (optimizer, twin)]
    assert public[0] == public[1] >= {"defaults", "state", "param_groups"}
    assert repr(twin) == repr(optimizer)
    assert twin.defaults == optimizer.defaults
    train(twin, range(3, 5))
    assert_same(everything(optimizer), before)  # the copy shares nothing with it
    train(optimizer, range(3, 5))
    assert_same(everything(twin), everything(optimizer))


# -- hooks -------------------------------------------------------------------------------------------------------------


@once
def test_step_hooks_run_in_order_and_can_be_removed(case: Case) -> None:
    (p,) = case.leaves((3,))
    optimizer = case.make([p])
    seen: list[tuple[str, float]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(opt: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            assert opt is optimizer
            seen.append((name, float(opt.state[p]["step"]) if p in opt.state else 0.0))

        return hook

    handles = [
        optimizer.register_step_pre_hook(note("pre")),
        optimizer.register_step_post_hook(note("post")),
        register_optimizer_step_pre_hook(note("global pre")),
        register_optimizer_step_post_hook(note("global post")),
    ]
    try:
        train(optimizer, [0])
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(seen[:2]) == [("global pre", 0.0), ("pre", 0.0)]
    assert sorted(seen[2:]) == [("global post", 1.0), ("post", 1.0)]
    train(optimizer, [1])
    assert len(seen) == 4


@once
def test_step_pre_hook_may_replace_the_closure(case: Case) -> None:
    weight, bias, closure = linear_model(case)
    optimizer = case.make([weight, bias])
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, closure), {}))
    loss = optimizer.step()
    assert loss is not None
    assert optimizer.state[weight]["step"] == 1


@once
def test_state_dict_hooks(case: Case) -> None:
    optimizer = case.make(case.leaves((3,)))
    train(optimizer, [0])
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("pre"))
    optimizer.register_state_dict_pre_hook(lambda opt: seen.append("pre first"), prepend=True)
    optimizer.register_state_dict_post_hook(lambda opt, state: seen.append("post") or state | {"more": 1})
    optimizer.register_state_dict_post_hook(lambda opt, state: seen.append("post first"), prepend=True)
    assert optimizer.state_dict()["more"] == 1
    assert seen == ["pre first", "pre", "post first", "post"]


@once
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_load_state_dict_hooks(case: Case, dtype: torch.dtype) -> None:
    """Ours work as two such hooks: those of the user run before the translation, and after the precision is restored,
    and there are no more of them after loading, or after a failed one, than before."""
    source, target = (case.make(case.leaves((3, 4), dtype=dtype)) for _ in range(2))
    train(source, range(3))
    (p,) = params_of(target)
    seen: list[str] = []

    def replaced(opt: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint that only this user's hook can read."""
        seen.append("pre")
        return {"state": {0: state["state"][0]["inner"]}, "param_groups": state["param_groups"]}

    def look(name: str) -> Callable[[torch.optim.Optimizer], None]:
        def hook(opt: torch.optim.Optimizer) -> None:
            seen.append(name)
            own = opt.state[p]
            assert own["exp_avg"].dtype == own["exp_avg_sq"].dtype == torch.float32
            assert own["step"].dtype == torch.float32

        return hook

    target.register_load_state_dict_pre_hook(replaced)
    target.register_load_state_dict_pre_hook(lambda opt, state: seen.append("pre first"), prepend=True)
    target.register_load_state_dict_post_hook(look("post"))
    target.register_load_state_dict_post_hook(look("post first"), prepend=True)
    saved = copy.deepcopy(source.state_dict())
    saved["state"][0] = {"inner": saved["state"][0]}
    for _ in range(2):
        target.load_state_dict(saved)
        assert len(target._optimizer_load_state_dict_pre_hooks) == 2
        assert len(target._optimizer_load_state_dict_post_hooks) == 2
    assert set(seen[:4]) == {"pre first", "pre", "post first", "post"}
    assert seen[:2] == ["pre first", "pre"]
    assert seen[4:] == seen[:4]
    assert_same(list(target.state[p].values()), list(source.state[params_of(source)[0]].values()))
    with pytest.raises(KeyError):
        target.load_state_dict(source.state_dict())
    assert len(target._optimizer_load_state_dict_pre_hooks) == 2


# -- closures and modes ------------------------------------------------------------------------------------------------


@once
def test_closure_is_called_once_with_gradients_and_its_loss_returned(case: Case) -> None:
    weight, bias, compute = linear_model(case)
    optimizer = case.make([weight, bias])
    calls = []

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        calls.append(compute())
        return calls[-1]

    for i in range(3):
        before = everything(optimizer)
        with torch.no_grad() if i == 1 else nullcontext():
            loss = optimizer.step(closure)
            assert torch.is_grad_enabled() == (i != 1)
        assert len(calls) == i + 1
        assert loss is calls[-1]
        assert loss.requires_grad
        if i:
            assert not torch.equal(everything(optimizer)[0], before[0])
    assert optimizer.step() is None
    assert len(calls) == 3


@every_backend
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode], ids=lambda m: m.__name__)
def test_grad_mode_of_the_caller_does_not_matter(case: Case, mode: Any) -> None:
    inside, outside = (case.make(case.leaves((3, 4), (5,))) for _ in range(2))
    for optimizer in (inside, outside):
        train(optimizer, [0])
    for step in range(1, 4):
        for optimizer in (inside, outside):
            for p in params_of(optimizer):
                p.grad = gradient(p, step)
            with mode() if optimizer is inside else nullcontext():
                optimizer.step()
    train(inside, [4])  # and outside of the mode again
    train(outside, [4])
    assert_same(everything(inside), everything(outside))
    assert all(p.requires_grad and p.is_leaf for p in params_of(inside))
    assert not any(t.requires_grad for state in inside.state.values() for t in state.values())


@every_backend
@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph=True")
def test_gradients_that_carry_a_graph_are_not_followed(case: Case) -> None:
    weight, bias, _ = linear_model(case)
    optimizer = case.make([weight, bias])
    for _ in range(3):
        optimizer.zero_grad()
        (weight.mv(torch.ones(5, device=case.device)) + bias).pow(3).sum().backward(create_graph=True)
        assert weight.grad is not None
        assert weight.grad.requires_grad
        optimizer.step()
    assert not any(t.requires_grad for state in optimizer.state.values() for t in state.values())
    optimizer.zero_grad()


# -- GradScaler --------------------------------------------------------------------------------------------------------


def train_scaled(
    case: Case, scaler: torch.amp.GradScaler | None, overflow: frozenset[int], steps: int
) -> tuple[ADOPT, list[int]]:
    """A run of the linear model; in the steps of `overflow` the gradient is inf with a scaler, and there is no step
    without one. Returns the optimizer and the steps after which nothing had changed."""
    weight, bias, _ = linear_model(case)
    optimizer = case.make([weight, bias])
    data = torch.linspace(-1, 2, 5, device=case.device)
    unchanged = []
    for step in range(steps):
        before = everything(optimizer)
        optimizer.zero_grad()
        loss = (weight.mv(data) + bias).square().sum()
        if scaler is not None:
            scaler.scale(loss).backward()
            if step in overflow:
                assert bias.grad is not None
                bias.grad[3] = math.inf
            scaler.step(optimizer)
            scaler.update()
        elif step not in overflow:
            loss.backward()
            optimizer.step()
        after = everything(optimizer)
        if len(before) == len(after) and all(map(torch.equal, before, after)):
            unchanged.append(step)
    return optimizer, unchanged


@once
@pytest.mark.parametrize("overflow", [(), (0,), (0, 1, 4)], ids=str)
def test_grad_scaling(case: Case, overflow: tuple[int, ...]) -> None:
    """The scale is a power of two, so that scaling and unscaling round nothing."""
    scaler = torch.amp.GradScaler(case.device, init_scale=2.0**10)
    scaled, skipped = train_scaled(case, scaler, frozenset(overflow), steps=7)
    plain, _ = train_scaled(case, None, frozenset(overflow), steps=7)
    assert skipped == list(overflow)
    assert scaler.get_scale() == 2.0 ** (10 - len(overflow))
    assert {float(s["step"]) for s in scaled.state.values()} == {7.0 - len(overflow)}
    assert_same(everything(scaled), everything(plain))


# -- planted wrong optimizers ------------------------------------------------------------------------------------------


class Idle(ADOPT):
    """Runs its closure and does nothing."""

    def step(self, closure: Any = None) -> Any:
        return closure() if closure else None


class Uphill(ADOPT):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"maximize": not kwargs.get("maximize", False)}))


class Drifting(ADOPT):
    """Moves every parameter a little, whatever its gradient."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for p in params_of(self):
                p += 1e-2
        return loss


class OneForAll(ADOPT):
    """Uses the options of the first group for all."""

    @contextmanager
    def pretend(self) -> Iterator[None]:
        own = [dict(group) for group in self.param_groups]
        for group in self.param_groups:
            group.update({k: v for k, v in own[0].items() if k != "params"})
        try:
            yield
        finally:
            for group, kept in zip(self.param_groups, own, strict=True):
                group.update(kept)

    def step(self, closure: Any = None) -> Any:
        with self.pretend():
            return super().step(closure)


class RoundedLr(ADOPT):
    """Reads a tensor lr in 16 bits."""

    def step(self, closure: Any = None) -> Any:
        lrs = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"] = group["lr"].bfloat16()
        try:
            return super().step(closure)
        finally:
            for group, lr in zip(self.param_groups, lrs, strict=True):
                group["lr"] = lr


class RealOnly(ADOPT):
    """Drops the imaginary part of gradients."""

    def step(self, closure: Any = None) -> Any:
        for p in params_of(self):
            if p.grad is not None and p.is_complex():
                p.grad = p.grad.real + 0j
        return super().step(closure)


class OneStepCount(ADOPT):
    """One step count for all tensors, that of the first, as torch-adopt's foreach has it."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        counts = [state["step"] for state in self.state.values()]
        for state in self.state.values():
            state["step"] = counts[0]
        return loss


class Forgetful(ADOPT):
    """Starts with empty moments after loading."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["exp_avg"] = torch.zeros_like(state["exp_avg"])


class Eager(ADOPT):
    """Evaluates its closure twice, and returns a number."""

    def step(self, closure: Any = None) -> Any:
        if closure:
            super().step(closure)
        loss = super().step(closure)
        return None if loss is None else loss.item()


class Sharing(ADOPT):
    """A copy that shares its moments with the original."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sharing":
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                memo[id(state[name])] = state[name]
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin


PLANTED: list[tuple[type[ADOPT], Callable[..., None], tuple[Any, ...]]] = [
    (Idle, test_goes_in_the_right_direction, ([], False)),
    (Idle, test_state_is_there_after_a_step, ()),
    (Idle, test_empty_and_0d_tensors, ()),
    (Uphill, test_goes_in_the_right_direction, ([step_lr], True)),
    (Uphill, test_group_with_lr_0_stays_and_the_other_goes_in_the_right_direction, ([],)),
    (Uphill, test_equals_the_reference, (torch.float32,)),
    (Drifting, test_group_with_lr_0_stays_and_the_other_goes_in_the_right_direction, ([step_lr],)),
    (Drifting, test_no_gradients_no_change, ()),
    (Drifting, test_zero_gradients_at_the_start_no_change, ()),
    (Drifting, test_equals_the_reference, (torch.float32,)),
    (Drifting, test_equals_the_reference, (torch.float64,)),
    (OneForAll, test_a_group_is_updated_as_if_it_were_alone, ({"lr": 0.03},)),
    (OneForAll, test_a_group_is_updated_as_if_it_were_alone, ({"weight_decay": 0.2},)),
    (OneForAll, test_weight_decay_of_a_group_shrinks_that_group_alone, ()),
    (RoundedLr, test_tensor_lr_is_float_lr, (None, torch.float32)),
    (RoundedLr, test_tensor_lr_is_float_lr, (step_lr, torch.float64)),
    (RealOnly, test_complex_is_its_real_view, (torch.complex64,)),
    (RealOnly, test_complex_is_its_two_parts, ()),
    (OneStepCount, test_equals_the_reference, (torch.float32,)),
    (Forgetful, test_save_load_equality, ()),
    (Forgetful, test_step_may_have_been_saved_as_something_else, (float,)),
    (Eager, test_closure_is_called_once_with_gradients_and_its_loss_returned, ()),
    (Sharing, test_copies_are_whole_and_apart, (copy.deepcopy,)),
]


@pytest.mark.parametrize(
    ("wrong", "check", "arguments"),
    PLANTED,
    ids=[f"{wrong.__name__}-{check.__name__}-{i}" for i, (wrong, check, _) in enumerate(PLANTED)],
)
def test_planted_mistakes_are_rejected(
    wrong: type[ADOPT], check: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    check(Case("reference"), *arguments)  # the right one passes
    with pytest.raises(AssertionError):
        check(Case("reference", cls=wrong), *arguments)
