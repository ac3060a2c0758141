"""A plan that is kept from step to step is as good as a new one, whatever happens in between.

- Property: two optimizers go through the same events in many orders: gradients that are missing, zero, of another
  layout or dtype; parameters cast, moved, replaced, transposed; groups added, options changed, states loaded, replaced,
  edited; deep copies and pickles. One forgets its plans before each step. Both end in the same bits or the same error.
- What is kept does not keep gradients, replaced parameters or dropped optimizers alive.
- A step with nothing new looks at each tensor a few times and makes no plan; that is counted.
- Step counts are counted in place where they are ours or in shared memory, and replaced where another put them there.
"""

import copy
import gc
import io
import multiprocessing
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.distributed.flat import Partition, Stretch
from adopt_hf.plan import build

SHAPES = ((3, 4), (5,), (), (4, 4), (2, 3, 2), (1,))


class Run:
    """An optimizer, its parameters, and a generator of the gradients that both runs get."""

    def __init__(self, forgets: bool, **options: Any):
        generator = torch.Generator().manual_seed(0)
        self.params = [Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        halves = [{"params": self.params[:3]}, {"params": self.params[3:], "weight_decay": 0.1}]
        self.optimizer = ADOPT(halves, lr=0.01, betas=(0.9, 0.99), decouple=True, **options)
        self.forgets = forgets
        self.generator = torch.Generator().manual_seed(1)
        self.old: list[Any] = []  # so that addresses of freed memory are not given out again by chance

    def gradients(self, how: str) -> None:
        for i, p in enumerate(self.params):
            g = torch.randn(p.shape, generator=self.generator).to(p.dtype)
            self.old.append(p.grad)
            if how == "some missing" and i % 2:
                p.grad = None
            elif how == "some zero" and i % 2:
                p.grad = torch.zeros_like(p)
            elif how == "other layout" and p.dim() == 2:
                p.grad = g.t().contiguous().t()
            elif how == "in place" and p.grad is not None and p.grad.dtype == p.dtype and p.grad.shape == p.shape:
                p.grad.copy_(g)
            else:
                p.grad = g
                if how == "some of another dtype" and i % 2:
                    p.grad.data = g.to(torch.bfloat16 if g.dtype == torch.float32 else torch.float32)
                elif how == "one cut short" and i == 4:
                    p.grad.data = g.flatten()[:2]

    def step(self) -> str | None:
        if self.forgets:
            self.optimizer.kept_plans.clear()
        try:
            self.optimizer.step()
        except (RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def everything(self) -> list[Tensor]:
        states = self.optimizer.state
        return [t for p in self.params for t in (p.detach(), *(states[p].values() if p in states else ()))]


def cast(run: Run) -> None:
    p = run.params[0]
    p.grad = None
    p.data = p.data.to(torch.float32 if p.dtype == torch.bfloat16 else torch.bfloat16)


def move(run: Run) -> None:
    run.old.append(run.params[1].data)
    run.params[1].data = run.params[1].data.clone()


def transpose(run: Run) -> None:
    """A square one: its elements are where they were, and mean others."""
    run.params[3].grad = None
    run.params[3].data = run.params[3].data.t()


def transpose_and_copy(run: Run) -> None:
    """Of as many elements, and of another shape: an error from now on."""
    run.params[0].grad = None
    run.params[0].data = run.params[0].data.t().contiguous()


def reshape(run: Run) -> None:
    """In its place, of as many elements, and contiguous: an error from now on."""
    run.params[0].grad = None
    run.params[0].data = run.params[0].data.reshape(run.params[0].shape[::-1])


def replace(run: Run) -> None:
    """As FSDP2 does after construction."""
    new = Parameter(run.params[4].detach().clone())
    group = run.optimizer.param_groups[1]
    group["params"] = [new if p is run.params[4] else p for p in group["params"]]
    run.params[4] = new


def exchange(run: Run) -> None:
    """Two groups of one length each get the other's first parameter."""
    first, second = run.optimizer.param_groups[:2]
    first["params"][0], second["params"][0] = second["params"][0], first["params"][0]


def add_group(run: Run) -> None:
    new = Parameter(torch.ones(3))
    run.params.append(new)
    run.optimizer.add_param_group({"params": [new], "lr": 0.1})


def reload(run: Run) -> None:
    buffer = io.BytesIO()
    torch.save(run.optimizer.state_dict(), buffer)
    buffer.seek(0)
    run.optimizer.load_state_dict(torch.load(buffer, weights_only=True))


def deepcopy(run: Run) -> None:
    run.optimizer, run.params = copy.deepcopy((run.optimizer, run.params))


def unpickle(run: Run) -> None:
    run.optimizer, run.params = pickle.loads(pickle.dumps((run.optimizer, run.params)))


def forget_state(run: Run) -> None:
    run.optimizer.state.pop(run.params[1], None)


def replace_moment(run: Run) -> None:
    state = run.optimizer.state.get(run.params[3])
    if state:
        name = "exp_avg" if "exp_avg" in state else "exp_avg_codes"
        state[name] = state[name].clone()


def move_moment(run: Run) -> None:
    state = run.optimizer.state.get(run.params[3])
    if state:
        name = "exp_avg_sq" if "exp_avg_sq" in state else "exp_avg_sq_codes"
        run.old.append(state[name].data)
        state[name].data = state[name].data.clone()


def edit_step(run: Run) -> None:
    state = run.optimizer.state.get(run.params[2])
    if state:
        state["step"].add_(3)


def share_step(run: Run) -> None:
    """One tensor in two states, as after a universal checkpoint of ZeRO 3."""
    states = [run.optimizer.state.get(run.params[i]) for i in (0, 1)]
    if all(states):
        shared = torch.tensor(9.0)
        for state in states:
            state["step"] = shared


def share_counts(run: Run) -> None:
    """The memory of all counts of a bucket moves, since they lie in one vector."""
    state = run.optimizer.state.get(run.params[2])
    if state:
        state["step"].share_memory_()


def edit_a_shared_count(run: Run) -> None:
    share_counts(run)
    edit_step(run)


def schedule(run: Run) -> None:
    for group in run.optimizer.param_groups:
        group["lr"] *= 0.5
        group["betas"] = (group["betas"][0] * 0.9, group["betas"][1])


def bad_number(run: Run) -> None:
    group = run.optimizer.param_groups[0]
    group["lr"] = -group["lr"]


def other_backend(run: Run) -> None:
    group = run.optimizer.param_groups[0]
    group["backend"] = "reference" if group["backend"] == "auto" else "auto"


def other_bits(run: Run) -> None:
    group = run.optimizer.param_groups[1]
    if group["capturable"]:  # which 32 bits go with only
        return
    group["state_bits"] = 16 if group["state_bits"] == 32 else 32


EVENTS: dict[str, Callable[[Run], None]] = {
    f.__name__: f
    for f in (
        *(cast, move, transpose, transpose_and_copy, reshape, replace, exchange, add_group, reload, deepcopy, unpickle),
        *(forget_state, replace_moment, move_moment, edit_step, share_step, share_counts, edit_a_shared_count),
        *(schedule, bad_number, other_backend, other_bits),
    )
}
GRADIENTS = (
    *("ordinary", "some missing", "some zero", "other layout", "in place"),
    *("some of another dtype", "one cut short"),
)


def happens(event: str, run: Run) -> type[Exception] | None:
    """Let something happen; return the error of what cannot be after other events (a reload of another shape)."""
    try:
        EVENTS.get(event, lambda run: None)(run)
    except (KeyError, RuntimeError, ValueError) as error:
        return type(error)
    return None


def both(events: list[tuple[str, str]], **options: Any) -> None:
    kept, forgetful = Run(forgets=False, **options), Run(forgets=True, **options)
    for event, how in events:
        assert happens(event, kept) == happens(event, forgetful)
        for run in (kept, forgetful):
            run.gradients(how)
        assert kept.step() == forgetful.step()
        for a, b in zip(kept.everything(), forgetful.everything(), strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


MOST = st.one_of(st.just("nothing"), st.sampled_from(sorted(EVENTS)))


@pytest.mark.everyday
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(MOST, st.sampled_from(GRADIENTS)), min_size=2, max_size=12))
def test_a_kept_plan_is_one_made_anew(events: list[tuple[str, str]]) -> None:
    both(events)


@pytest.mark.parametrize(
    "options", [{"backend": "foreach"}, {"capturable": True}, {"state_bits": 16}, {"state_bits": 8}]
)
@pytest.mark.parametrize("event", EVENTS)
def test_each_event_alone(event: str, options: dict[str, Any]) -> None:
    both([("nothing", "ordinary"), ("nothing", "in place"), (event, "ordinary"), ("nothing", "ordinary")], **options)


@pytest.mark.parametrize("options", [{}, {"backend": "foreach"}, {"capturable": True}, {"state_bits": 8}], ids=str)
@pytest.mark.parametrize("how", GRADIENTS)
def test_each_kind_of_gradients_after_ordinary_ones(how: str, options: dict[str, Any]) -> None:
    both([("nothing", "ordinary"), ("nothing", "ordinary"), ("nothing", how), ("nothing", "ordinary")], **options)


def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of plans that have been made so far, as the one element of a list."""
    count, new = [0], build._new_plan

    def counting(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return new(*args, **kwargs)

    monkeypatch.setattr(build, "_new_plan", counting)
    return count


def train(optimizer: ADOPT, params: list[Parameter], steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([(p * p).sum() for p in params]).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("cls", [ADOPT, LayerwiseADOPT])
@pytest.mark.parametrize("options", [{}, {"state_bits": 8}, {"backend": "foreach"}], ids=str)
def test_a_step_like_the_one_before_makes_no_plan(
    monkeypatch: pytest.MonkeyPatch, cls: type[ADOPT], options: dict[str, Any]
) -> None:
    params = [Parameter(torch.ones(shape)) for shape in (*SHAPES, (64, 65))]
    optimizer = cls(params, **options)
    count = made(monkeypatch)
    train(optimizer, params, 2)
    before = count[0]
    for group in optimizer.param_groups:
        group["lr"] = 0.02
    train(optimizer, params, 5)
    assert count[0] == before


def test_a_schedule_and_a_late_gradient_make_one_plan_each_time_that_something_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = [Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = ADOPT(params)
    count = made(monkeypatch)
    for step in range(8):
        for i, p in enumerate(params):
            p.grad = torch.zeros(3) if i == 1 and step < 4 else torch.ones(3)
        optimizer.step()
    assert count[0] == 2
    assert [int(optimizer.state[p]["step"]) for p in params] == [8, 4, 8]


def test_flat_parameters_that_take_turns_keep_their_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO 3 puts one flat parameter after the other into the param group."""
    flats = [Parameter(torch.ones(6)) for _ in range(5)]
    optimizer = ADOPT(flats)
    for number, flat in enumerate(flats):
        whole = Partition(2, [Stretch(0, 0, 4), Stretch(1, 4, 2)], lambda: [True, True], lambda counts: None, number)
        optimizer.set_partition(flat, whole)
    count = made(monkeypatch)
    for turn in range(5):
        before = count[0]
        for flat in flats:
            optimizer.param_groups[0]["params"] = [flat]
            flat.grad = torch.ones(6)
            optimizer.step()
        assert turn < 2 or count[0] == before


def test_another_cut_of_a_flat_parameter_is_used() -> None:
    """An engine that is made again cuts its flat parameter again, while everything else stays where it is."""
    flat = Parameter(torch.ones(6))
    optimizer = ADOPT([flat])
    for arrived in ([True, True], [True, False]):
        cut = Partition(2, [Stretch(0, 0, 4), Stretch(1, 4, 2)], lambda now=arrived: now, lambda counts: None)
        optimizer.set_partition(flat, cut)
        for _ in range(3):
            flat.grad = torch.ones(6)
            optimizer.step()
    assert cut.steps(optimizer.state[flat]) == [6, 3]


@pytest.mark.everyday
def test_what_is_kept_keeps_nothing_else_alive() -> None:
    params = [Parameter(torch.ones(5)) for _ in range(3)]
    optimizer = ADOPT(params)
    train(optimizer, params, 3)
    gradient = weakref.ref(params[0].grad)
    params[0].grad = None
    gc.collect()
    assert gradient() is None
    old = weakref.ref(params[0])
    new = Parameter(torch.ones(5))
    optimizer.state.pop(params[0])
    optimizer.param_groups[0]["params"][0] = params[0] = new
    train(optimizer, params, 1)
    gc.collect()
    assert old() is None
    state = weakref.ref(optimizer.state[new]["exp_avg"])
    del optimizer
    gc.collect()
    assert state() is None


def test_steps_that_are_ours_are_counted_in_place_and_others_are_replaced() -> None:
    params = [Parameter(torch.ones(2)) for _ in range(3)]
    optimizer = ADOPT(params)
    train(optimizer, params, 2)
    ours = [optimizer.state[p]["step"] for p in params]
    train(optimizer, params, 1)
    assert all(optimizer.state[p]["step"] is step for p, step in zip(params, ours, strict=True))
    assert [float(step) for step in ours] == [3, 3, 3]
    foreign = torch.tensor(3.0)
    for p in params[:2]:
        optimizer.state[p]["step"] = foreign
    train(optimizer, params, 2)
    assert float(foreign) == 3
    assert [float(optimizer.state[p]["step"]) for p in params] == [5, 5, 5]


def test_a_saved_state_has_steps_of_its_own() -> None:
    """They are views of one vector, which a file does not show."""
    params = [Parameter(torch.ones(2)) for _ in range(300)]
    optimizer = ADOPT(params)
    train(optimizer, params, 2)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)["state"]
    assert all(state["step"].shape == () and float(state["step"]) == 2 for state in loaded.values())


def _child(optimizer: ADOPT, params: list[Parameter]) -> None:
    torch.set_num_threads(1)
    train(optimizer, params, 3)


def test_a_step_count_in_shared_memory_is_counted_there() -> None:
    """Asynchronous training: a child process steps, and the parent's optimizer goes on from there."""
    params = [Parameter(torch.ones(4)).share_memory_() for _ in range(2)]
    optimizer = ADOPT(params)
    train(optimizer, params, 2)
    for state in optimizer.state.values():
        for t in state.values():
            t.share_memory_()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(optimizer, params))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert [float(optimizer.state[p]["step"]) for p in params] == [5, 5]
    train(optimizer, params, 1)
    assert [float(optimizer.state[p]["step"]) for p in params] == [6, 6]


@pytest.mark.parametrize(
    "written",
    [
        {"lr": -1e-3},
        {"lr": float("nan")},
        {"lr": torch.tensor(-1.0)},
        {"betas": (1.485, 0.99)},
        {"betas": (0.9, 1.0)},
        {"weight_decay": float("inf")},
        {"eps": -1.0},
        {"clip_exp": -0.25},
        {"clip_exp": "0.25"},
        {"betas": None},
        {"weight_decay": None},
        {"state_bits": 7},
        {"backend": "triton"},
    ],
    ids=str,
)
@pytest.mark.parametrize("capturable", [False, True])
def test_a_number_that_a_schedule_has_written_is_checked_before_anything_changes(
    written: dict[str, Any], capturable: bool
) -> None:
    if capturable and isinstance(written.get("lr"), Tensor):
        pytest.skip("to look at a tensor lr is to wait for its device")
    params = [Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = ADOPT([{"params": params[:1]}, {"params": params[1:]}], capturable=capturable)
    train(optimizer, params, 2)
    before = copy.deepcopy([*params, optimizer.state_dict()["state"]])
    optimizer.param_groups[1].update(written)
    name = next(iter(written))
    for p in params:
        p.grad = torch.ones(2)
    with pytest.raises(ValueError, match="beta" if name == "betas" else name):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before[:2], strict=True))
    assert str(optimizer.state_dict()["state"]) == str(before[2])


def test_where_tensors_show_no_address_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on XLA devices."""

    def fail(t: Tensor) -> int:
        raise RuntimeError("no storage")

    params = [Parameter(torch.ones(3))]
    optimizer = ADOPT(params, backend="foreach")
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "data_ptr", fail)
        train(optimizer, params, 3)
    assert optimizer.kept_plans == {}
    assert optimizer.state[params[0]]["step"] == 3
