"""`load_state_dict`: only ADOPT's own states are taken, parameters find their names, and every value is checked."""

import copy
import io
import logging
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.backends.dense import is_plain
from adopt_hf.state import loading

SHAPES = ((64, 128), (3, 4))
FORMS: dict[str, dict[str, Any]] = {
    "32 bits": {},
    "16 bits": {"state_bits": 16},
    "8 bits": {"state_bits": 8, "block_size": 64},
    "two groups": {"weight_decay": 0.1, "decouple": True},
}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def optimizer_of(params: list[nn.Parameter], form: str, **options: Any) -> ADOPT:
    named = list(zip(("a.weight", "b.weight"), params, strict=True))
    groups: Any = [{"params": [pair]} for pair in named] if form == "two groups" else named
    return ADOPT(groups, lr=0.01, **(FORMS[form] | options))


def train(optimizer: torch.optim.Optimizer, steps: range) -> None:
    for t in steps:
        generator = torch.Generator().manual_seed(t)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def snapshot(optimizer: torch.optim.Optimizer) -> tuple[list[Tensor], str]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    tensors = [t for p in params for t in (p, *optimizer.state[p].values())]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    keys = [list(optimizer.state[p]) for p in params]
    return [t.detach().clone() for t in tensors], repr((groups, keys, len(optimizer.state)))


def assert_unchanged(optimizer: ADOPT, before: tuple[list[Tensor], str]) -> None:
    after = snapshot(optimizer)
    assert after[1] == before[1]
    assert all(map(torch.equal, before[0], after[0]))


# -- only ADOPT's states -----------------------------------------------------------------------------------------------

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
    assert not loading.is_adopt(saved["param_groups"])
    optimizer = cls([nn.Parameter(torch.ones(2, 3))], backend="reference")
    train(optimizer, range(2))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"the saved state is not ADOPT's. Its param groups have .*weights only"):
        optimizer.load_state_dict(saved)
    assert_unchanged(optimizer, before)


def test_a_state_of_several_groups_is_adopts_if_all_are() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    saved = ADOPT([{"params": [a]}, {"params": [b]}]).state_dict()
    assert loading.is_adopt(saved["param_groups"])
    saved["param_groups"][1] = BASE | {"params": [1]}
    assert not loading.is_adopt(saved["param_groups"])
    assert not loading.is_adopt([])
    with pytest.raises(ValueError, match=r"is not ADOPT's. Its param groups have betas, eps, lr, weight_decay"):
        ADOPT([{"params": [a]}, {"params": [b]}]).load_state_dict(saved)


# -- names -------------------------------------------------------------------------------------------------------------


def named_run(names: list[list[str]], form: str) -> tuple[ADOPT, dict[str, Tensor]]:
    """An optimizer with a param group for each list of names, whose parameters have gradients of another size each."""
    params = {name: nn.Parameter(torch.zeros(64, 128)) for group in names for name in group}
    groups = [
        {"params": [(name, params[name]) for name in group], "weight_decay": float(i)} for i, group in enumerate(names)
    ]
    optimizer = ADOPT(groups, **FORMS[form])
    for _ in range(3):
        for size, name in enumerate(sorted(params)):
            params[name].grad = torch.full((64, 128), 10.0**size)
        optimizer.step()
    return optimizer, dict(params)


def sizes(optimizer: ADOPT) -> dict[str, float]:
    """The first v of each parameter, by name."""
    found = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            state = optimizer.state[p]
            as_floats = ADOPT([nn.Parameter(torch.zeros(64, 128))])
            alone = optimizer.state_dict()["param_groups"][0] | {"params": [0]}
            del alone["param_names"]
            as_floats.load_state_dict({"state": {0: state}, "param_groups": [alone]})
            (floats,) = as_floats.state.values()
            found[name] = floats["exp_avg_sq"][0, 0].item()
    return found


@pytest.mark.parametrize("form", ["32 bits", "16 bits", "8 bits"])
@pytest.mark.parametrize(
    ("there", "here"),
    [
        ([["a", "b"]], [["b", "a"]]),
        ([["a", "b"], ["c", "d", "e"]], [["b", "a"], ["e", "c", "d"]]),
        ([["a.w", "b.w"]], [["module.b.w", "module.a.w"]]),
        ([["_orig_mod.a.w", "_orig_mod.b.w"]], [["b.w", "a.w"]]),
        ([["a._fsdp_wrapped_module.w", "b.w"]], [["b._checkpoint_wrapped_module.w", "a.w"]]),
        ([["a.w", "b.w"]], [["model.inner.b.w", "model.inner.a.w"]]),
        ([["a.module.w", "a.w"]], [["a.w", "a.module.w"]]),
    ],
)
def test_parameters_get_the_state_of_their_name(there: list[list[str]], here: list[list[str]], form: str) -> None:
    def plain(name: str) -> str:
        parts = name.split(".")
        return name if "a.module.w" in there[0] else next((x for x in parts if x in "abcde"), name)

    source, _ = named_run(there, form)
    target, params = named_run(here, form)
    saved = copy.deepcopy(source.state_dict())
    target.load_state_dict(source.state_dict())
    assert [group["param_names"] for group in target.param_groups] == here  # what they are called here
    expected, found = sizes(source), sizes(target)
    assert {plain(name): v for name, v in found.items()} == {plain(name): v for name, v in expected.items()}
    assert len({round(v, 3) for v in found.values()}) == len(params)
    assert str(saved) == str(source.state_dict())  # what was given is as it was
    assert [group["weight_decay"] for group in target.param_groups] == list(range(len(here)))


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ([["a", "b"]], [["b", "c"]], "a in the state only, c here only"),
        ([["a", "b"]], [["a", "b", "c"]], "nothing in the state only, c here only"),
        ([["a", "b"], ["c"]], [["c", "b"], ["a"]], "parameter c is in param group 0 here and was in group 1"),
        ([["a", "b"], ["c"]], [["c"], ["a", "b"]], "parameter c is in param group 0 here and was in group 1"),
        ([["a", "b", "c"]], [["b", "a"], ["c"]], "parameter c is in param group 1 here and was in group 0"),
    ],
)
def test_other_parameters_or_groups_are_refused(there: list[list[str]], here: list[list[str]], message: str) -> None:
    (source, _), (target, _) = named_run(there, "32 bits"), named_run(here, "32 bits")
    before = snapshot(target)
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(source.state_dict())
    assert_unchanged(target, before)


def test_names_without_a_common_one_are_paired_by_order_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    (source, _), (target, _) = named_run([["a.w", "b.w"]], "32 bits"), named_run([["c.w", "d.w"]], "32 bits")
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        target.load_state_dict(source.state_dict())
    assert "None of the 2 parameter names of the saved optimizer state is a name here (a.w, here c.w)" in caplog.text
    assert list(sizes(target).values()) == list(sizes(source).values())


def test_ids_that_are_names_are_in_order_already() -> None:
    """As torch.distributed.checkpoint hands a state over: `params` in the order of here, `param_names` in the old."""
    source, params = named_run([["a", "b"]], "32 bits")
    state = {name: source.state[p] for name, p in params.items()}
    group = source.state_dict()["param_groups"][0] | {"params": ["b", "a"]}
    target, _ = named_run([["b", "a"]], "32 bits")
    target.load_state_dict({"state": state, "param_groups": [group]})
    assert target.param_groups[0]["param_names"] == ["b", "a"]
    assert sizes(target) == sizes(source)


# -- values ------------------------------------------------------------------------------------------------------------


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


# -- what is saved -----------------------------------------------------------------------------------------------------


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


# -- every place of a state, changed -----------------------------------------------------------------------------------

META = torch.zeros(3, device="meta")
VALUES: list[Any] = [
    None, True, -1, 0, 2, 2.5, -0.5, 1e300, float("nan"), float("inf"), 1j, "x", b"x", (), [], {}, [1.0, 2.0], (0.5,),
    (0.5, 0.25), (0.5, None), range(3), {"a": 1}, object, torch.tensor(2.0), torch.tensor(float("nan")),
    torch.tensor(-1), torch.tensor([1.0, 2.0]), torch.tensor(1j), META, META[0], torch.ones(64, 128),
    torch.ones(64, 128, dtype=torch.bfloat16), torch.ones(64, 128, dtype=torch.uint8),
]  # fmt: skip
DELETE = object()


def first(t: Tensor, value: float) -> Tensor:
    changed = t.clone()
    if t.numel():
        changed.view(-1)[0] = value
    return changed


TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "meta": lambda t: t.to("meta"),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "long": lambda t: t.long(),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "transposed": lambda t: t.t() if t.dim() == 2 else t,
    "strided": lambda t: t.t().contiguous().t() if t.dim() == 2 else t,
    "flat": lambda t: t.flatten(),
    "half of it": lambda t: t[: t.shape[0] // 2] if t.dim() else t,
    "expanded": lambda t: torch.full((), 2, dtype=t.dtype).expand(t.shape),
    "zero": torch.zeros_like,
    "requires grad": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
    "parameter": lambda t: nn.Parameter(t.clone(), requires_grad=False),
    "list": lambda t: t.tolist(),
    **{
        f"one is {value}": lambda t, value=value: first(t, value) if t.is_floating_point() else t  # type: ignore[misc]
        for value in (float("nan"), float("inf"), -float("inf"), -1.0, 1e30, 3.0, 1e-40)
    },
}


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every entry of nested dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def changed(tree: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    key, *rest = path
    old = tree[key]
    new = changed(old, tuple(rest), change) if rest else change(old)
    if isinstance(tree, dict):
        return {k: (new if k == key else v) for k, v in tree.items() if k != key or new is not DELETE}
    items = [new if i == key else v for i, v in enumerate(tree) if i != key or new is not DELETE]
    return type(tree)(items)


def valid_state(form: str) -> dict[str, Any]:
    optimizer = optimizer_of(parameters(), form)
    train(optimizer, range(3))
    return optimizer.state_dict()


VALID = {form: valid_state(form) for form in FORMS}


@st.composite
def changed_states(draw: Any) -> tuple[str, dict[str, Any], list[str]]:
    form = draw(st.sampled_from(list(FORMS)))
    saved, said = copy.deepcopy(VALID[form]), []
    for _ in range(draw(st.integers(1, 2))):
        if not (found := places(saved)):
            break
        path = draw(st.sampled_from(found))
        old = saved
        for key in path:
            old = old[key]
        if isinstance(old, Tensor) and draw(st.booleans()):
            name = draw(st.sampled_from(list(TENSORS)))
            change = TENSORS[name] if not old.is_meta and old.layout == torch.strided else lambda t: t
        elif draw(st.integers(0, 4)) == 0:
            name, change = "deleted", lambda _: DELETE
        else:
            value = draw(st.sampled_from(VALUES))
            name, change = repr(value)[:60], lambda _, value=value: value  # type: ignore[misc]
        saved = changed(saved, path, change)
        said.append(f"{path}: {name}")
        if not isinstance(saved, dict):
            break
    return form, saved, said


def is_finite(tree: Any) -> bool:
    """Whether moments and hyperparameters are of a size that training can go on from."""
    if isinstance(tree, dict):
        return all(map(is_finite, tree.values()))
    if isinstance(tree, list | tuple):
        return all(map(is_finite, tree))
    if isinstance(tree, Tensor):
        return tree.is_meta or tree.is_complex() or bool((tree.detach().to_dense().double().abs() < 1e20).all())
    return not isinstance(tree, float) or abs(tree) < 1e20


@settings(max_examples=200, deadline=None, derandomize=True)
@given(changed_states())
def test_a_changed_state_is_taken_whole_or_refused_whole(case: tuple[str, dict[str, Any], list[str]]) -> None:
    form, saved, said = case
    optimizer = optimizer_of(parameters(), form)
    train(optimizer, range(2))
    before = snapshot(optimizer)
    try:
        optimizer.load_state_dict(saved)
    except ValueError:
        assert_unchanged(optimizer, before)
        train(optimizer, range(3, 4))
        return
    train(optimizer, range(3, 6))
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert p.isfinite().all() or not is_finite(saved), said
            state = optimizer.state[p]
            assert is_plain(state["step"]), said
            assert not any(t.requires_grad or t.is_meta for t in state.values() if isinstance(t, Tensor)), said
    again = optimizer_of(parameters(), form)
    again.load_state_dict(optimizer.state_dict())


def test_all_of_the_state_is_changed_by_the_test_above() -> None:
    found = {path[-1] for form in FORMS for path in places(VALID[form])}
    assert {"step", "exp_avg", "exp_avg_sq", "exp_avg_codes", "scales", "params", "param_names", "lr", "seed"} <= found
