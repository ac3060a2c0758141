"""Every backend, one and the same set of tests (the Triton kernel in its interpreter where there is no GPU):

- one step from any state equals the definition in float64, to a bound derived from the rounding of the equations;
- the bound rejects deliberately wrong updates;
- NaN and inf come out where they come out of the definition;
- a v that is, or becomes, 0 is told from one that was never observed;
- memory layout, piece boundaries and the company of other tensors change nothing;
- on the CPU foreach needs less than 2 MiB of temporaries at any size, and the fused kernel none;
- `choose` refuses what cannot run, and says why.
"""

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from adopt_hf import ADOPT, backends
from adopt_hf.algorithm import StepScalars, least_of, state_dtype, step_scalars, update
from adopt_hf.backends import Backend, foreach, reference
from adopt_hf.backends.bucket import Bucket
from adopt_hf.hyperparameters import HYPERPARAMETERS
from experiments.gpu import interpreter  # noqa: F401
from tests.oracle import Settings
from tests.support.processes import python

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def as_elsewhere(buckets: Sequence[Bucket]) -> None:
    """Do what foreach does on other devices than the CPU: nothing is looked at, and pieces are small only here."""
    for bucket in buckets:
        foreach.step_within(foreach.Room(1000, looks=False), bucket)


BACKENDS = {
    "reference": backends.REFERENCE,
    "foreach": backends.FOREACH,
    "foreach elsewhere": backends.FOREACH._replace(step=as_elsewhere),
    "cpu": backends.CPU,
    "triton": backends.TRITON,
}
SHAPES = ((), (1,), (7,), (3, 5), (2, 3, 4), (0,), (300,))


@dataclass(frozen=True)
class Case:
    """The tensors and the settings that one step starts from."""

    name: str
    settings: Settings
    t: int = 5
    dtype: torch.dtype = torch.float32
    grad_dtype: torch.dtype | None = None
    unseen: float = 0.2  # share of elements with v == 0

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("defaults", Settings()),
    Case("first step", Settings(), t=0, unseen=1.0),
    Case("first step decoupled", Settings(weight_decay=0.1, decouple=True), t=0, unseen=1.0),
    Case("second step", Settings(weight_decay=0.1, decouple=True), t=1, unseen=0.0),
    Case("all seen", Settings(), unseen=0.0),
    Case("late in training", Settings(), t=100_000, unseen=0.01),
    Case("coupled", Settings(weight_decay=0.1)),
    Case("decoupled", Settings(weight_decay=0.1, decouple=True, lr=0.5)),
    Case("maximize", Settings(maximize=True)),
    Case("maximize coupled", Settings(maximize=True, weight_decay=0.1)),
    Case("no clipping", Settings(clip_exp=None)),
    Case("constant clipping", Settings(clip_exp=0.0)),
    Case("large eps", Settings(eps=0.5)),
    Case("eps 0", Settings(eps=0.0)),
    Case("beta1 0", Settings(betas=(0.0, 0.99))),
    Case("beta1 small", Settings(betas=(0.3, 0.99))),
    Case("beta2 0", Settings(betas=(0.9, 0.0))),
    Case("beta2 warm-up", Settings(beta2_warmup=1.0)),
    Case("beta2 warm-up, exponent", Settings(beta2_warmup=0.65)),
    Case("lr 0", Settings(lr=0.0, weight_decay=0.1, decouple=True)),
    Case("float64", Settings(weight_decay=0.1), dtype=torch.float64),
    Case("bfloat16", Settings(weight_decay=0.1, decouple=True), dtype=torch.bfloat16),
    Case("float16", Settings(weight_decay=0.1), dtype=torch.float16),
    Case("float32 with bfloat16 gradients", Settings(weight_decay=0.1), grad_dtype=torch.bfloat16),
]

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]
Run = Callable[[Lists, Settings, int], None]


def state(case: Case, device: str, seed: int = 0) -> Lists:
    """Parameters, gradients and moments as they may stand in mid-training; gradients within and far beyond the clip."""
    generator = torch.Generator().manual_seed(seed)
    params, grads, exp_avgs, exp_avg_sqs = [], [], [], []
    moments = state_dtype(case.dtype)
    for shape in SHAPES:
        normal = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)]
        scale = torch.exp(2 * torch.randn(shape, generator=generator, dtype=torch.float64))
        seen = torch.rand(shape, generator=generator) >= case.unseen
        params.append(normal[0].to(device, case.dtype))
        grads.append((normal[1] * scale).to(device, case.grad_dtype or case.dtype))
        exp_avgs.append((normal[2] * seen).to(device, moments))
        exp_avg_sqs.append((normal[3] ** 2 * seen).to(device, moments))
    return params, grads, exp_avgs, exp_avg_sqs


def copy(lists: Lists) -> Lists:
    p, g, m, v = ([t.clone() for t in column] for column in lists)
    return p, g, m, v


def run_backend(backend: Backend) -> Run:
    return lambda lists, settings, t: backend.step([Bucket(*lists, step_scalars(vars(settings), t))])


def runs_on(backend: str, device: str, dtype: torch.dtype = torch.float32) -> Backend:
    """The backend of that name; skips the test where it cannot run, as where it is made for another device."""
    reason = BACKENDS[backend].why_not(torch.device(device), dtype)
    if reason is not None:
        pytest.skip(reason)
    return BACKENDS[backend]


def misfits(run: Run, case: Case, device: str) -> Iterator[str]:
    """Return where `run` differs from the definition by more than rounding can.

    With r the unit roundoff of the arithmetic, each of the ten or so operations of an equation adds at most r relative
    to its result; 8 r times the sum of the magnitudes that went in bounds all of them, also where terms cancel.
    A 16-bit parameter is rounded once more, to half a unit in its last place.
    """
    before, after = state(case, device), state(case, device)
    run(after, case.settings, case.t)
    s = step_scalars(vars(case.settings), case.t)
    arithmetic = torch.finfo(before[2][0].dtype)
    for shape, p, g, m, v, *got in zip(SHAPES, *before, after[0], after[2], after[3], strict=True):
        p, g, m, v = (x.double() for x in (p, g, m, v))
        expected = update(p, g, m, v, s)
        g_size = g.abs() + s.l2 * p.abs()
        u_size = (g_size / v.sqrt().clamp(min=max(s.eps, 1e-300))).clamp(max=s.clip) * (v != 0)
        m_size = m.abs() + (1 - s.beta1) * (u_size + m.abs())
        sizes = (p.abs() + s.lr * m_size, m_size, v + g_size**2)
        stored = torch.finfo(case.dtype)
        bounds = [8 * arithmetic.eps * size + arithmetic.tiny for size in sizes]
        if case.dtype != before[2][0].dtype:
            bounds[0] = bounds[0] + stored.eps / 2 * expected[0].abs() + stored.tiny * stored.eps
        for name, x, y, bound in zip(("theta", "m", "v"), got, expected, bounds, strict=True):
            wrong = (x.double() - y).abs() > bound
            if wrong.any():
                yield f"{case}, shape {shape}: {name} off by {((x.double() - y).abs() / bound).max():.1f} bounds"
    if not all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True)):
        yield f"{case}: a gradient was changed"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_step_is_the_definition(backend: str, case: Case, device: str) -> None:
    assert list(misfits(run_backend(runs_on(backend, device, case.dtype)), case, device)) == []


def planted(change_scalars: Callable[..., StepScalars] | None = None, **changed: Any) -> Run:
    """A wrong update: the right one with other numbers, or `update` with an equation replaced."""

    def run(lists: Lists, settings: Settings, t: int) -> None:
        s = step_scalars(vars(settings), t)
        if change_scalars is not None:
            s = change_scalars(s, settings, t)
        for p, g, m, v in zip(*lists, strict=True):
            theta, new_m, new_v = wrong_update(p, g, m, v, s, **changed)
            p.copy_(theta)
            m.copy_(new_m)
            v.copy_(new_v)

    return run


def wrong_update(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    s: StepScalars,
    *,
    eps_added=False,
    v_first=False,
    clip_after=False,
    first_moves=False,
    decay_after=False,
    first_weighted=False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The update again, with switches for mistakes; with none of them it must pass (tested)."""
    theta, g = p.to(m.dtype), g.to(m.dtype) * s.scale
    g = g + s.l2 * theta
    new = v == 0
    next_v = torch.where(new, g * g * (1 - s.beta2 if first_weighted else 1), s.beta2 * v + (1 - s.beta2) * g * g)
    normaliser = next_v if v_first else v
    denominator = normaliser.sqrt() + s.eps if eps_added else normaliser.sqrt().clamp(min=s.eps)
    u = g / denominator
    if not clip_after:
        u = u.clamp(-s.clip, s.clip)
    if not first_moves:
        u = torch.where(new, 0.0, u)
    theta = theta if decay_after else theta * s.decay
    m = m + (1 - s.beta1) * (u - m)
    if clip_after:
        m = m.clamp(-s.clip, s.clip)
    theta = theta - s.lr * m
    return (theta * s.decay if decay_after else theta), m, next_v


PLANTED = {
    "clip off by one": planted(lambda s, settings, t: s._replace(clip=(t + 1) ** 0.25)),
    "clip exponent 0.333": planted(lambda s, settings, t: s._replace(clip=t**0.333)),
    "decay on the first step": planted(lambda s, settings, t: s._replace(decay=1 - s.lr * settings.weight_decay)),
    "decay without lr": planted(lambda s, settings, t: s._replace(decay=1 - settings.weight_decay)),
    "beta2 warm-up off by one": planted(lambda s, settings, t: s._replace(beta2=min(s.beta2, 1 - 1 / (t + 2)))),
    "eps added": planted(eps_added=True),
    "v before u": planted(v_first=True),
    "clip of m": planted(clip_after=True),
    "first observation moves": planted(first_moves=True),
    "decay after the step": planted(decay_after=True),
    "first observation weighted": planted(first_weighted=True),
}


def test_the_update_that_mistakes_are_planted_in_is_right() -> None:
    assert [m for case in CASES if case.settings.eps > 0 for m in misfits(planted(), case, "cpu")] == []


@pytest.mark.parametrize("mistake", PLANTED)
def test_mistakes_are_rejected(mistake: str) -> None:
    cases = [case for case in CASES if case.settings.clip_exp == 0.25 and case.settings.eps > 0]
    assert any(True for case in cases for _ in misfits(PLANTED[mistake], case, "cpu"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", [Settings(), Settings(clip_exp=None), Settings(betas=(0.3, 0.9), clip_exp=None)])
def test_nan_and_inf_come_out_as_from_the_definition(backend: str, settings: Settings, device: str) -> None:
    """Every combination of an odd number in one place with an ordinary one in the others, seen and unseen."""
    odd = [float("nan"), float("inf"), -float("inf"), 0.0]
    rows = [(p, g, m, v) for x in odd for p, g, m, v in ((x, 1, 1, 4), (1, x, 1, 4), (1, 1, x, 4), (1, x, 0, 0))]
    rows += [(1, x, 1, y) for x in odd for y in (float("nan"), float("inf"))]
    p, g, m, v = torch.tensor(rows, device=device).T.contiguous()
    s = step_scalars(vars(settings), 16)
    expected = update(p, g, m, v, s)
    runs_on(backend, device).step([Bucket([p], [g], [m], [v], s)])
    for got, wanted in zip((p, m, v), expected, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("unseen", [False, True], ids=["all observed", "some never observed"])
@pytest.mark.parametrize("beta2", [0.0, 0.3, 0.9999])
@pytest.mark.parametrize("eps", [0.0, 1e-200, 1e-30, 1e-6])
def test_a_v_of_zero_is_told_from_one_never_observed(
    backend: str, dtype: torch.dtype, unseen: bool, beta2: float, eps: float, device: str
) -> None:
    """Smallest numbers of v, g and eps in every combination, to the bit where the definition has a zero or `least`."""
    least = least_of(dtype)
    vs = [least, 2 * least, 3 * least, torch.finfo(dtype).tiny, 1.0, *([0.0] if unseen else [])]
    gs = [0.0, least, -least, least**0.5, -4 * least**0.5, 1.0]
    rows = [(1.0, g, 0.5, v) for g in gs for v in vs for _ in range(3)]
    p, g, m, v = torch.tensor(rows, device=device, dtype=dtype).T.contiguous()
    s = step_scalars(vars(Settings(betas=(0.9, beta2), eps=eps)), 16)
    was, expected = v.clone(), update(p, g, m, v, s)
    runs_on(backend, device, dtype).step([Bucket([p], [g], [m], [v], s)])
    for got, wanted in zip((p, m, v), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6 if dtype == torch.float32 else 1e-13, atol=2 * least)
    assert torch.equal(v == 0, (was == 0) & (g == 0))
    assert torch.equal(v == least, expected[2] == least)


def strided(t: Tensor) -> Tensor:
    wide = torch.zeros(*t.shape, 2, dtype=t.dtype)
    wide[..., 0] = t
    return wide[..., 0]


LAYOUTS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "contiguous": [torch.Tensor.clone] * 4,
    "transposed": [lambda t: t.mT.contiguous().mT] * 4,
    "transposed gradient": [torch.clone, lambda t: t.mT.contiguous().mT, torch.clone, torch.clone],
    "strided": [strided] * 4,
    "channels last": [lambda t: t.view(2, -1, 3, 5).to(memory_format=torch.channels_last)] * 4,
}


def step_twice_laid_out(backend: Backend, layout: str) -> None:
    """Steps of a backend on tensors of that layout are the reference's on contiguous ones."""
    case = Case("", Settings(weight_decay=0.1, decouple=True))
    torch.manual_seed(0)
    shapes = [(30, 30), (2, 15), (1, 30)] if layout != "channels last" else [(20, 15), (4, 15)]
    whole = [[torch.randn(s), torch.randn(s), torch.randn(s), torch.rand(s) * (torch.rand(s) > 0.2)] for s in shapes]
    laid = [[change(t) for change, t in zip(LAYOUTS[layout], four, strict=True)] for four in whole]
    for t in (7, 8):
        for step, tensors in ((reference.step, whole), (backend.step, laid)):
            columns = [list(column) for column in zip(*tensors, strict=True)]
            step([Bucket(*columns, step_scalars(vars(case.settings), t))])
    for four, reordered in zip(whole, laid, strict=True):
        for index in (0, 2, 3):
            torch.testing.assert_close(reordered[index].reshape(four[index].shape), four[index])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [50, 300, 10_000])
def test_layout_and_pieces_change_nothing(layout: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny budgets of temporaries cut in every way: within rows, at odd places, several tensors to a batch."""
    monkeypatch.setitem(foreach.ROOMS, "cpu", foreach.Room(budget, looks=True))
    step_twice_laid_out(backends.FOREACH, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_changes_nothing(backend: str, layout: str) -> None:
    step_twice_laid_out(runs_on(backend, "cpu"), layout)


MEASURE = """
import sys, torch
from adopt_hf import ADOPT

def status(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024

def peak_of_a_step(dtype, elements, **kwargs):
    tensors = [torch.zeros(elements, dtype=dtype), torch.zeros(1000, 1000, dtype=dtype), torch.zeros(10, dtype=dtype)]
    for p in tensors:
        p.grad = torch.ones_like(p)
    optimizer = ADOPT(tensors, backend=sys.argv[1], **kwargs)
    optimizer.step()
    optimizer.step()
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again
    before = status("VmRSS")
    optimizer.step()
    return status("VmHWM") - before

for name in sys.argv[2:]:
    print(peak_of_a_step(getattr(torch, name), 4_000_000))
    print(peak_of_a_step(getattr(torch, name), 4_000_000, weight_decay=0.1, maximize=True))
"""


def peaks(backend: str, *dtypes: str) -> list[int]:
    """Growth of the resident set during the third step, for dtypes and modes.

    glibc would keep what the first two steps have freed, and the third would not grow: with a fixed threshold every
    block from 128 KiB on is mapped, and given back when it is freed.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the peak of the resident set from /proc")
    said = python("-c", textwrap.dedent(MEASURE), backend, *dtypes, env={"MALLOC_MMAP_THRESHOLD_": str(2**17)})
    return [int(line) for line in said.split()]


@pytest.mark.everyday
def test_foreach_needs_under_2_mib_of_temporaries_on_the_cpu() -> None:
    assert max(peaks("foreach", "float32", "bfloat16", "float64")) < 2 * 2**20


@pytest.mark.everyday
def test_the_fused_kernel_needs_no_temporaries_on_the_cpu() -> None:
    """But for a table of 40 bytes a tensor, and the touched pages of stacks."""
    runs_on("cpu", "cpu")
    assert max(peaks("fused", "float32", "bfloat16", "float64")) < 2**18


@pytest.mark.slow
def test_the_measurement_of_temporaries_sees_them() -> None:
    assert min(peaks("reference", "float32")) > 15 * 2**20


CPU = torch.device("cpu")


def test_choose_refuses_what_cannot_run_and_says_why() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of 'auto', .*, got 'triton'"):
        HYPERPARAMETERS["backend"].check("backend", "triton")
    with pytest.raises(
        RuntimeError, match=r"'fused' cannot run on meta tensors of torch.float32: .*meta tensors.*'auto'"
    ):
        backends.choose("fused", torch.device("meta"), torch.float32)
    with pytest.raises(
        RuntimeError, match=r"'fused' cannot run on cpu tensors of torch.float32: .*subclass.*'foreach'"
    ):
        backends.choose("fused", CPU, torch.float32, plain=False)
    with pytest.raises(RuntimeError, match=r"'foreach' cannot run .*capturable=True.*Allowed here: .*'reference'\Z"):
        backends.choose("foreach", CPU, torch.float32, capturable=True)


def test_auto_is_the_first_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    runs_on("cpu", "cpu")
    assert backends.choose("auto", CPU, torch.float32) is backends.choose("fused", CPU, torch.bfloat16) is backends.CPU
    assert backends.choose("auto", CPU, torch.complex64) is backends.CPU  # seen as pairs of float32
    assert backends.choose("auto", CPU, torch.float32, plain=False) is backends.FOREACH
    assert backends.choose("auto", CPU, torch.float32, capturable=True) is backends.REFERENCE
    assert backends.choose("auto", torch.device("meta"), torch.float32) is backends.FOREACH
    assert backends.choose("reference", CPU, torch.float32) is backends.REFERENCE


RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t().contiguous(),
    "the same memory in another shape": lambda t: t.view(t.shape[1], t.shape[0]),
    "flattened": lambda t: t.view(-1),
    "one dimension more": lambda t: t.unsqueeze(0),
}


@pytest.mark.parametrize("change", RESHAPED)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backend": "foreach"},
        {"backend": "reference"},
        {"capturable": True, "backend": "reference"},
        {"state_bits": 16},
        {"state_bits": 16, "backend": "reference"},
        {"state_bits": 8},
        {"state_bits": 8, "backend": "reference"},
        {"bf16_stochastic_round": True},
    ],
    ids=str,
)
def test_a_parameter_that_has_changed_its_shape_is_refused(options: dict[str, Any], change: str) -> None:
    """Not its number of elements: kernels would pair the wrong ones. Nothing has been changed when it is."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if options.get("bf16_stochastic_round") else torch.float32
    params = [torch.nn.Parameter(torch.randn(64, 80).to(dtype)) for _ in range(2)]
    optimizer = ADOPT(params, lr=0.1, **options)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    params[1].grad = None
    params[1].data = RESHAPED[change](params[1].data)
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.randn_like(p)
    for _ in range(2):
        with pytest.raises((RuntimeError, ValueError), match=r"\(64, 80\)|has scales of shape"):
            optimizer.step()
    assert all(map(torch.equal, params, before))
    del optimizer.state[params[1]]
    optimizer.step()
    optimizer.step()
    assert not torch.equal(params[0], before[0])
