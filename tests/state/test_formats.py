"""Moments in 8 and 16 bits and bfloat16 parameters rounded stochastically, in the optimizer:

- v follows its float32 twin over 20,000 steps at beta2 = 0.9999, without bias and within 0.35 octaves, and what rounds
  to nearest does not;
- a bfloat16 parameter follows its float32 twin where rounding to nearest leaves it behind;
- the CPU kernel equals the definition; a resumed run is the uninterrupted one, bit for bit;
- states go from one form to another; small tensors and embeddings keep float32; what cannot be is an error.
"""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adopt_hf import ADOPT, LayerwiseADOPT, keep_float32, param_groups
from adopt_hf.backends.cpu.launch import why_not
from adopt_hf.state.conversion import CODES, bits_of
from adopt_hf.state.quantization import Quantized, dequantize, quantize

CPU_KERNEL = why_not(torch.device("cpu"), torch.float32)
needs_kernel = pytest.mark.skipif(CPU_KERNEL is not None, reason=f"takes minutes without the CPU kernel: {CPU_KERNEL}")
SHAPES = ((64, 300), (5000,), (33, 257), (7,), (130, 64, 3))
FORMS = [
    {"state_bits": 8},
    {"state_bits": 8, "block_size": 64},
    {"state_bits": 16},
    {"bf16_stochastic_round": True},
    {"state_bits": 8, "bf16_stochastic_round": True},
]


def floats(optimizer: ADOPT, p: Tensor) -> tuple[Tensor, Tensor]:
    """m and v of a parameter, whatever their form."""
    state = optimizer.state[p]
    if bits_of(state) == 8:
        return dequantize(Quantized(*(state[name] for name in CODES)), optimizer.param_groups[0]["block_size"])
    return state["exp_avg"].float(), state["exp_avg_sq"].float()


def tensors(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    return [*params, nn.Parameter(torch.randn(300, 80).to(dtype).t())]


def train(optimizer: ADOPT, params: list[nn.Parameter], start: int, end: int) -> None:
    for t in range(start, end):
        for i, p in enumerate(params):
            generator = torch.Generator().manual_seed(1000 * t + i)
            scale = torch.exp2(torch.empty(p.shape).uniform_(-5, 5, generator=generator))
            p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)
            if t < 3:
                p.grad[::3] = 0
            if t == 4:
                p.grad.flatten()[1] = torch.nan if i == 1 else 0
        optimizer.step()


# -- v follows ---------------------------------------------------------------------------------------------------------

STEPS = 20_000
COURSES: dict[str, Callable[[int, Tensor], Tensor | float]] = {
    "stationary": lambda t, random: 1.0,
    "growing": lambda t, random: 2 ** (8 * t / STEPS),
    "shrinking": lambda t, random: 2 ** (-8 * t / STEPS),
    "sparse": lambda t, random: (random < 0.01) if t else 1.0,
}


@needs_kernel
@pytest.mark.slow
@pytest.mark.parametrize("course", COURSES)
def test_v_follows_its_float32_twin(course: str) -> None:
    shape, generator = (16, 256), torch.Generator().manual_seed(0)
    size = torch.exp2(torch.empty(shape).uniform_(-3, 3, generator=generator))
    bits = (32, 16, 8)
    params = [nn.Parameter(torch.zeros(shape)) for _ in bits]
    optimizers = [ADOPT([p], state_bits=n) for p, n in zip(params, bits, strict=True)]
    nearest = torch.zeros(shape, dtype=torch.bfloat16)
    for t in range(STEPS):
        factor = COURSES[course](t, torch.rand(shape, generator=generator))
        grad = torch.randn(shape, generator=generator) * size * factor
        for p, optimizer in zip(params, optimizers, strict=True):
            p.grad = grad
            optimizer.step()
        nearest = (0.9999 * nearest.float() + (1 - 0.9999) * grad**2 if t else grad**2).bfloat16()
    v, *low = (floats(optimizer, p)[1].double() for p, optimizer in zip(params, optimizers, strict=True))
    for of_low, most in zip(low, (0.2, 0.35), strict=True):
        assert (of_low > 0).all()
        assert (of_low / v).log2().pow(2).mean().sqrt() < most  # octaves
        ratio = of_low / v
        assert abs(ratio.mean() - 1) < 5 * ratio.std() / v.numel() ** 0.5 + 1e-3  # without bias
    assert (nearest.double() / v).log2().pow(2).mean().sqrt() > 0.35, "rounding to nearest would pass as well"


@pytest.mark.parametrize("backend", ["reference", pytest.param("fused", marks=needs_kernel)])
@pytest.mark.parametrize("bits", [8, 16])
def test_v_above_zero_never_becomes_zero(bits: int, backend: str) -> None:
    p = nn.Parameter(torch.zeros(16, 256))
    # v halves in a step without gradients
    optimizer = ADOPT([p], state_bits=bits, betas=(0.9, 0.5), backend=backend)
    p.grad = torch.logspace(-19, 12, 4096).view(16, 256)
    optimizer.step()
    p.grad = torch.zeros(16, 256)
    p.grad[:, 0] = 1e10
    for _ in range(300):
        optimizer.step()
    assert (floats(optimizer, p)[1] > 0).all()


# -- bfloat16 parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", pytest.param("fused", marks=needs_kernel)])
def test_small_updates_of_bfloat16_are_not_lost(backend: str) -> None:
    """Steps of a hundredth of a last place: rounded to nearest the parameter stays where it is."""
    ends = {}
    for dtype, stochastic in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        p = nn.Parameter(torch.ones(4096, dtype=dtype))
        optimizer = ADOPT([p], lr=4e-5, backend=backend, bf16_stochastic_round=stochastic)
        for _ in range(401):
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends[dtype, stochastic] = p.detach().double().mean().item()
    moved = 1 - ends[torch.float32, False]
    assert moved > 0.015
    assert ends[torch.bfloat16, False] == 1
    assert 1 - ends[torch.bfloat16, True] == pytest.approx(moved, abs=5 * 2**-8 / 2 * (401 * 0.01 / 4096) ** 0.5 + 1e-4)


def test_bits_differ_between_tensors_seeds_and_steps() -> None:
    def rounded(seed: int) -> list[Tensor]:
        params = [nn.Parameter(torch.ones(4096, dtype=torch.bfloat16)) for _ in range(2)]
        optimizer = ADOPT(params, lr=1e-3, bf16_stochastic_round=True, seed=seed)
        seen = []
        for _ in range(3):
            for p in params:
                p.data.fill_(1)
                p.grad = torch.ones_like(p)
            optimizer.step()
            seen += [p.detach().clone() for p in params]
        return seen[2:]  # the first step moves nothing

    first, again, other = rounded(0), rounded(0), rounded(1)
    assert all(map(torch.equal, first, again))
    everything = [*first, *other]
    for i, a in enumerate(everything):
        assert 0 < (a < 1).float().mean() < 1
        assert not any(torch.equal(a, b) for b in everything[i + 1 :])


# -- the kernel, and resuming ------------------------------------------------------------------------------------------


@needs_kernel
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "more", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decouple": True, "beta2_warmup": True}]
)
def test_the_kernel_is_the_definition(dtype: torch.dtype, form: dict[str, Any], more: dict[str, Any]) -> None:
    """To the bit, but for the last place of a root: torch's is not always rounded correctly."""
    results = []
    for backend in ("reference", "fused"):
        params = tensors(dtype)
        optimizer = ADOPT(params, lr=1e-2, backend=backend, **form, **more)
        train(optimizer, params, 0, 8)
        results.append((optimizer, params))
    for p, q in zip(*(params for _, params in results), strict=True):
        of_p, of_q = results[0][0].state[p], results[1][0].state[q]
        assert of_p.keys() == of_q.keys()
        if dtype is torch.bfloat16:
            assert (p != q)[p.isfinite()].float().mean() < 1e-3
        torch.testing.assert_close(p, q, rtol=1e-2 if dtype != torch.float32 else 2e-5, atol=1e-5, equal_nan=True)
        for name in of_p:
            if of_p[name].dtype == torch.uint8:
                assert (of_p[name] != of_q[name]).float().mean() < 1e-3, name
            else:
                torch.testing.assert_close(of_p[name], of_q[name], rtol=1e-2, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("backend", ["reference", pytest.param("fused", marks=needs_kernel)])
@pytest.mark.parametrize("odd", [torch.inf, -torch.inf, 2e21, torch.nan])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("seen_before", [False, True])
def test_what_v_cannot_hold_ends_as_nan(seen_before: bool, form: dict[str, Any], odd: float, backend: str) -> None:
    """And nowhere else. The square of 2e21 is beyond float32."""
    p = nn.Parameter(torch.zeros(64, 300, dtype=torch.bfloat16))
    optimizer = ADOPT([p], lr=1e-2, backend=backend, **form)
    for t in range(6):
        p.grad = torch.ones_like(p)
        p.grad[0, 1] = odd if t == 3 else float(seen_before or t > 3)
        optimizer.step()
    assert p[0, 1].isnan()
    assert p.isfinite().sum() == p.numel() - 1
    assert floats(optimizer, p)[0][0, 1].isnan()


@needs_kernel
def test_codes_that_are_rounded_up_to_inf_are_inf_in_the_kernel_too() -> None:
    """The square of 1.8e19 is just below the largest float32, and the number of the next code is above it."""
    results = []
    for backend in ("reference", "fused"):
        p = nn.Parameter(torch.zeros(64, 300))
        optimizer = ADOPT([p], lr=1e-2, backend=backend, state_bits=8, betas=(0.9, 0.9))
        for _ in range(3):
            p.grad = torch.full_like(p, 1.8e19)
            p.grad[:, ::64] = 1e-5  # a block of so wide a range has the coarsest grid
            optimizer.step()
        results.append((p.isnan(), *(optimizer.state[p][name] for name in CODES[:2])))
    assert 0 < results[0][0].sum() < results[0][0].numel()
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_is_the_uninterrupted_one(form: dict[str, Any], dtype: torch.dtype) -> None:
    whole = tensors(dtype)
    optimizer = ADOPT(whole, lr=1e-2, seed=5, **form)
    train(optimizer, whole, 0, 6)
    half, weights = io.BytesIO(), copy.deepcopy([p.data for p in whole])
    torch.save(optimizer.state_dict(), half)
    train(optimizer, whole, 6, 12)

    resumed = [nn.Parameter(w) for w in weights]
    again = ADOPT(resumed, lr=1.0, **form)
    half.seek(0)
    again.load_state_dict(torch.load(half, weights_only=True))
    train(again, resumed, 6, 12)
    for p, q in zip(whole, resumed, strict=True):
        assert torch.equal(p.nan_to_num(), q.nan_to_num())
        for name, value in optimizer.state[p].items():
            assert torch.equal(value.nan_to_num(), again.state[q][name].nan_to_num()), name
            assert value.dtype == again.state[q][name].dtype


@pytest.mark.parametrize("target", [8, 16, 32])
@pytest.mark.parametrize("source", [8, 16, 32])
def test_states_go_from_one_form_to_another(source: int, target: int) -> None:
    params = tensors()[:4]
    optimizer = ADOPT(params, lr=1e-2, state_bits=source)
    train(optimizer, params, 0, 4)
    others = copy.deepcopy(params)
    other = ADOPT(others, lr=1e-2, state_bits=target)
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(params, others, strict=True):
        assert bits_of(other.state[q]) == (32 if target == 8 and p.numel() < 4096 else target)
        assert other.state[q]["step"] == 4
        for a, b in zip(floats(optimizer, p), floats(other, q), strict=True):
            assert ((a - b).abs() <= 0.26 * b.abs() + b.abs().max() / 200).all()
            if source == target or (source == 16 and target == 32):
                assert torch.equal(a, b)
        assert torch.equal(floats(optimizer, p)[1] == 0, floats(other, q)[1] == 0)
    assert [group["state_bits"] for group in other.param_groups] == [target]
    train(other, others, 4, 6)


def test_state_bits_may_change_in_mid_run() -> None:
    params = tensors()[:1]
    optimizer = ADOPT(params)
    train(optimizer, params, 0, 3)
    v = optimizer.state[params[0]]["exp_avg_sq"].clone()
    optimizer.param_groups[0]["state_bits"] = 8
    params[0].grad = torch.zeros_like(params[0])
    optimizer.step()
    assert bits_of(optimizer.state[params[0]]) == 8
    assert (floats(optimizer, params[0])[1] / v).log2().nan_to_num().abs().max() < 0.5


# -- bytes, and what keeps float32 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "most"), [(8, 2.1), (16, 4.0), (32, 8.0)])
def test_bytes_of_the_state(bits: int, most: float) -> None:
    params = [
        nn.Parameter(torch.randn(shape)) for shape in ((768, 2304), (3072, 768), (50, 1000), (8192,), (64, 3, 7, 7))
    ]
    optimizer = ADOPT(params, state_bits=bits)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    for p in params:
        size = sum(t.numel() * t.element_size() for name, t in optimizer.state[p].items() if name != "step")
        assert size <= most * p.numel()
        assert size >= bits // 4 * p.numel()


def test_small_tensors_and_embeddings_keep_float32() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(100, 64), "linear": nn.Linear(128, 64), "norm": nn.LayerNorm(64)})
    optimizer = ADOPT(param_groups(model, 0.1), state_bits=8)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    bits = {name: bits_of(optimizer.state[p]) for name, p in model.named_parameters()}
    assert bits == {"embed.weight": 32, "linear.weight": 8, "linear.bias": 32, "norm.weight": 32, "norm.bias": 32}


@pytest.mark.parametrize(("elements", "bits"), [(4095, 32), (4096, 8)])
def test_the_smallest_tensor_in_8_bits(elements: int, bits: int) -> None:
    p = nn.Parameter(torch.zeros(elements))
    optimizer = ADOPT([p], state_bits=8)
    p.grad = torch.ones(elements)
    optimizer.step()
    assert bits_of(optimizer.state[p]) == bits


def test_marked_parameters_keep_float32() -> None:
    params = [nn.Parameter(torch.randn(64, 128)) for _ in range(2)]
    keep_float32(params[1:])
    optimizer = ADOPT(params, state_bits=8)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert [bits_of(optimizer.state[p]) for p in params] == [8, 32]
    assert optimizer.param_groups[0]["float32_state"] == [1]


@pytest.mark.parametrize("form", ["groups", "generators", "names", "one list"])
def test_what_keeps_float32_gets_groups_of_its_own(form: str) -> None:
    """For ZeRO: the same parameters with the same options, however they are given, and each group of one form."""
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 80), nn.LayerNorm(80), nn.Linear(80, 50, bias=False))
    groups = param_groups(model, 0.1)
    given: Any = {
        "groups": groups,
        "generators": [{**group, "params": iter(group["params"])} for group in groups],
        "names": list(model.named_parameters()),
        "one list": list(model.parameters()),
    }[form]
    optimizer = ADOPT(given, state_bits=8, float32_apart=True)
    found = [(g["state_bits"], g["weight_decay"], [p.numel() for p in g["params"]]) for g in optimizer.param_groups]
    big, embedding, small, rest = 64 * 80, 6400, 80 * 50, [80, 80, 80]
    if form in ("groups", "generators"):
        assert found == [(8, 0.1, [big]), (32, 0.1, [embedding, small]), (32, 0.0, rest)]
    else:
        assert found == [(8, 0.0, [big]), (32, 0.0, [embedding, *rest, small])]
    if form == "names":
        names = [group["param_names"] for group in optimizer.param_groups]
        assert names == [["1.weight"], ["0.weight", "1.bias", "2.weight", "2.bias", "3.weight"]]
    assert not any("float32_state" in group for group in optimizer.param_groups)


def test_groups_that_are_not_in_8_bits_stay_as_they_are() -> None:
    params = [nn.Parameter(torch.ones(n)) for n in (10, 5000, 20, 6000)]
    groups: list[dict[str, Any]] = [{"params": params[:2], "state_bits": 16}, {"params": params[2:], "state_bits": 8}]
    optimizer = ADOPT(groups, float32_apart=True)
    found = [(group["state_bits"], [p.numel() for p in group["params"]]) for group in optimizer.param_groups]
    assert found == [(16, [10, 5000]), (8, [6000]), (32, [20])]


# -- errors ------------------------------------------------------------------------------------------------------------


def parameter(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(64, 128, dtype=dtype))]


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (torch.float32, {"state_bits": 5}, "state_bits must be one of 8, 16, 32, got 5"),
        (torch.float32, {"state_bits": "8"}, "state_bits must be one of 8, 16, 32, got '8'"),
        (torch.float32, {"state_bits": True}, "state_bits must be one of 8, 16, 32, got True"),
        (torch.float32, {"state_bits": 8, "block_size": 100}, r"block_size must be one of 64, 128, .*, got 100"),
        (torch.float32, {"block_size": 32}, r"block_size must be one of 64, 128, .*, got 32"),
        (torch.float32, {"bf16_stochastic_round": 1}, "bf16_stochastic_round must be True or False, got 1"),
        (torch.float32, {"seed": -1}, r"seed must be a whole number in \[0, .*, got -1"),
        (torch.float32, {"seed": 1.5}, r"seed must be a whole number in \[0, .*, got 1.5"),
        (
            torch.float64,
            {"state_bits": 8},
            r"state_bits=8 takes parameters of .* got torch.float64 of shape \(64, 128\)",
        ),
        (torch.complex64, {"state_bits": 8}, "state_bits=8 takes parameters of .* got torch.complex64"),
        (torch.float64, {"state_bits": 16}, "state_bits=16 takes parameters of .* got torch.float64"),
        (torch.float32, {"state_bits": 8, "capturable": True}, "state_bits=8 cannot be combined with capturable=True"),
        (
            torch.bfloat16,
            {"bf16_stochastic_round": True, "capturable": True},
            "cannot be combined with capturable=True",
        ),
    ],
)
def test_what_cannot_be_is_an_error(dtype: torch.dtype, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ADOPT(parameter(dtype), **options)
    optimizer = ADOPT(parameter())
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": parameter(dtype), **options})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    "options",
    [{}, {"backend": "fused"}, {"state_bits": 8}, {"state_bits": 16}, {"bf16_stochastic_round": True},
     {"capturable": True}, {"state_bits": 8, "float32_apart": True}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("cls", [ADOPT, LayerwiseADOPT])
def test_what_never_gets_a_gradient_may_be_of_any_dtype(cls: type[ADOPT], options: dict[str, Any]) -> None:
    """The quantised base of an adapter, left in the param groups."""
    if options.get("backend") == "fused" and CPU_KERNEL is not None:
        pytest.skip(f"no compiled kernel: {CPU_KERNEL}")
    dtypes = (torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn, torch.float64, torch.complex64)
    frozen = [nn.Parameter(torch.zeros(64, 128).to(dtype), requires_grad=False) for dtype in dtypes]
    adapter = parameter()[0]
    optimizer = cls([*frozen, adapter], **options)
    for _ in range(3):
        adapter.square().add(adapter).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (adapter < 0).all()
    assert list(optimizer.state) == [adapter]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)]})


def test_what_is_unfrozen_is_looked_at_when_it_gets_a_gradient() -> None:
    late = nn.Parameter(torch.zeros(64, 128, dtype=torch.float64), requires_grad=False)
    (other,) = parameter()
    optimizer = ADOPT([other, late], state_bits=8)
    late.requires_grad_(True)
    (late.sum() + other.sum()).backward()
    with pytest.raises(ValueError, match=r"state_bits=8 takes parameters of .* got torch.float64"):
        optimizer.step()
    assert (other == 0).all()


def test_foreach_says_that_it_cannot() -> None:
    with pytest.raises(RuntimeError, match=r"backend='foreach' cannot run .* does not support stochastic rounding"):
        ADOPT(parameter(), state_bits=8, backend="foreach")


def test_another_block_size_is_an_error() -> None:
    params = parameter()
    optimizer = ADOPT(params, state_bits=8, block_size=128)
    train(optimizer, params, 0, 2)
    saved = optimizer.state_dict()
    other = ADOPT(parameter(), state_bits=8)
    with pytest.raises(ValueError, match="blocks of 128 elements and this optimizer has block_size=256"):
        other.load_state_dict(saved)
    assert not other.state
    as_floats = ADOPT(parameter())
    as_floats.load_state_dict(saved)
    p, q = params[0], as_floats.param_groups[0]["params"][0]
    codes = Quantized(*(optimizer.state[p][name] for name in CODES))
    assert torch.equal(dequantize(codes, 128)[1], as_floats.state[q]["exp_avg_sq"])


def test_codes_of_another_model_are_an_error() -> None:
    params = parameter()
    optimizer = ADOPT(params, state_bits=8)
    train(optimizer, params, 0, 2)
    other = ADOPT([nn.Parameter(torch.zeros(32, 128))], state_bits=8)
    with pytest.raises(ValueError, match=r"exp_avg_codes of shape \(64, 128\), the parameter has \(32, 128\)"):
        other.load_state_dict(optimizer.state_dict())


def test_under_compile() -> None:
    """The rounded update runs beside the compiled program: the keys of its bits are new in every step."""
    results = []
    for compiled in (False, True):
        params = tensors()[:2]
        optimizer = ADOPT(params, lr=1e-2, state_bits=8)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for t in range(4):
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * t + i))
            step()
        results.append(params)
    for p, q in zip(*results, strict=True):
        assert torch.equal(p, q)


# -- what a user changes in mid-run ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 16])
def test_a_model_cast_to_float64_is_an_error(bits: int) -> None:
    params = parameter()
    optimizer = ADOPT(params, state_bits=bits)
    train(optimizer, params, 0, 2)
    params[0].data = params[0].data.double()
    params[0].grad = None
    params[0].grad = torch.randn(64, 128, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"state_bits={bits} takes parameters of .* got torch.float64"):
        optimizer.step()


@pytest.mark.parametrize(("block_size", "message"), [(64, "with block_size=64 it must be"), (100, "must be one of 64")])
def test_another_block_size_in_mid_run_is_an_error(block_size: int, message: str) -> None:
    params = parameter()
    optimizer = ADOPT(params, state_bits=8)
    train(optimizer, params, 0, 2)
    before = params[0].detach().clone()
    optimizer.param_groups[0]["block_size"] = block_size
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(params[0], before)


def test_scales_of_another_shape_are_an_error() -> None:
    params = parameter()
    optimizer = ADOPT(params, state_bits=8, block_size=64)
    train(optimizer, params, 0, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["scales"] = saved["state"][0]["scales"][:, :1].clone()
    other = ADOPT(parameter(), state_bits=8, block_size=64)
    with pytest.raises(ValueError, match=r"has scales of shape \(64, 1, 3\) .* it must be \(64, 2, 3\)"):
        other.load_state_dict(saved)
    assert not other.state
    params[0].data = params[0].data.view(128, 64)
    params[0].grad = None
    params[0].grad = torch.randn(128, 64)
    with pytest.raises(ValueError, match="has exp_avg_codes of shape"):
        optimizer.step()


def test_how_parameters_are_rounded_is_kept_by_a_load() -> None:
    params = parameter(torch.bfloat16)
    optimizer = ADOPT(params)
    train(optimizer, params, 0, 2)
    other = ADOPT(parameter(torch.bfloat16), bf16_stochastic_round=True, seed=3)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["bf16_stochastic_round"]
    assert other.param_groups[0]["seed"] == 0  # of the run that goes on


def test_empty_tensors() -> None:
    for bits in (8, 16, 32):
        p = nn.Parameter(torch.zeros(0, 300))
        optimizer = ADOPT([p, *parameter()], state_bits=bits)
        train(optimizer, optimizer.param_groups[0]["params"], 0, 2)
    empty = torch.zeros(0, 300)
    assert dequantize(quantize(empty, empty, 256, 1), 256)[0].shape == (0, 300)
