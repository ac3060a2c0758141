"""`load_state_dict`: parameters find their names, and a state is taken whole or refused whole."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adopt_hf import ADOPT
from adopt_hf.backends.dense import is_plain
from tests.state.runs import FORMS, assert_unchanged, optimizer_of, parameters, snapshot, train

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
        ([["a", "b"]], [["b", "c"]], "a only in the state, c only here"),
        ([["a", "b"]], [["a", "b", "c"]], "none only in the state, c only here"),
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
    assert "None of the 2 parameter names of the saved optimizer state belongs to this" in caplog.text
    assert "(saved: a.w, here: c.w)" in caplog.text
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
