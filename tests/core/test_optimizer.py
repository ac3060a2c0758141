"""The optimizer around the update: state, buckets, late and empty tensors, saving and loading, arguments."""

import copy
import importlib.util
import io
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from adopt_hf import ADOPT, LayerwiseADOPT, backends
from adopt_hf.state import saved_groups
from tests.oracle import Oracle, Settings
from tests.support.tensors import assert_same

BACKENDS = backends.NAMES


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def give_gradients(params: list[Tensor], step: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(1000 * seed + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)


def train(optimizer: ADOPT, params: list[Tensor], steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


def everything(optimizer: ADOPT, params: list[Tensor]) -> list[Tensor]:
    """Parameters and state, to compare bit for bit."""
    return [t for p in params for t in (p.detach(), *optimizer.state[p].values())]


# -- trajectories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decouple": True},
        {"maximize": True, "beta2_warmup": True},
        {"clip_exp": None, "betas": (0.5, 0.9)},
    ],
)
def test_late_zero_and_missing_gradients_follow_the_oracle(backend: str, options: dict[str, Any]) -> None:
    """Four tensors of one group: ordinary; first gradient in step 3; zero until step 2; one element zero until step 5.

    A fifth is skipped in every third step, a sixth never gets a gradient. Each has a step count of its own.
    """
    params = leaves((3,), (2,), (2,), (4,), (2,), (2,))
    oracles = [Oracle(p.tolist(), Settings(lr=0.1, **options)) for p in params]
    optimizer = ADOPT(params, lr=0.1, backend=backend, **options)
    for step in range(20):
        give_gradients(params, step)
        params[1].grad = params[1].grad if step >= 3 else None
        params[2].grad *= step >= 2
        params[3].grad[1] *= step >= 5
        params[4].grad = params[4].grad if step % 3 else None
        params[5].grad = None
        for p, oracle in zip(params, oracles, strict=True):
            if p.grad is not None:
                oracle.step(p.grad.tolist())
        optimizer.step()
    for p, oracle in zip(params[:5], oracles[:5], strict=True):
        state = optimizer.state[p]
        assert state["step"] == oracle.t
        for got, expected in ((p, oracle.theta), (state["exp_avg"], oracle.m), (state["exp_avg_sq"], oracle.v)):
            torch.testing.assert_close(
                got.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-13
            )
    assert params[5] not in optimizer.state


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decouple": True}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_on_zero_gradients_leave_no_trace(backend: str, options: dict[str, Any]) -> None:
    """Frameworks call step() on zero gradients to have the state allocated."""
    params, untouched = leaves((3, 4), (5,)), leaves((3, 4), (5,))
    optimizer = ADOPT(params, backend=backend, **options)
    for _ in range(3):
        for p in params:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    assert_same([p.detach() for p in params], [p.detach() for p in untouched])
    assert [list(optimizer.state[p]) for p in params] == [["step", "exp_avg", "exp_avg_sq"]] * 2
    plain = ADOPT(untouched, backend=backend, **options)
    train(optimizer, params, range(5))
    train(plain, untouched, range(5))
    assert_same(everything(optimizer, params), everything(plain, untouched))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_in_the_first_gradient_is_an_observation(backend: str) -> None:
    (p,) = leaves((2,))
    optimizer = ADOPT([p], backend=backend)
    p.grad = torch.tensor([float("nan"), 0.0], dtype=torch.float64)
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    assert optimizer.state[p]["exp_avg_sq"].isnan().tolist() == [True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_shapes_and_groups_mix(backend: str) -> None:
    """One group with several dtypes, 0-d and empty tensors equals one optimizer for each tensor."""
    shapes, dtypes = [(), (0,), (3, 4), (7,)], [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    together = [p for dtype in dtypes for p in leaves(*shapes, dtype=dtype)]
    apart = [p for dtype in dtypes for p in leaves(*shapes, dtype=dtype)]
    one = ADOPT([{"params": together[:5], "lr": 0.1}, {"params": together[5:]}], backend=backend)
    many = [ADOPT([p], lr=0.1 if i < 5 else 1e-3, backend=backend) for i, p in enumerate(apart)]
    for step in range(4):
        give_gradients(together, step)
        for p, q in zip(together, apart, strict=True):
            q.grad = p.grad.clone()
        one.step()
        for optimizer in many:
            optimizer.step()
    assert_same(everything(one, together), [t for o, p in zip(many, apart, strict=True) for t in everything(o, [p])])


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "moments"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
    ],
)
def test_state_has_adams_names_and_at_least_single_precision(dtype: torch.dtype, moments: torch.dtype) -> None:
    p = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    optimizer = ADOPT([p])
    assert len(optimizer.state) == 0  # lazy: FSDP2 swaps the parameters after construction
    p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state[p]
    assert list(state) == ["step", "exp_avg", "exp_avg_sq"]
    assert (state["step"].shape, state["step"].dtype, state["step"].device.type) == ((), torch.float32, "cpu")
    assert {(state[k].dtype, state[k].shape) for k in ("exp_avg", "exp_avg_sq")} == {(moments, p.shape)}


def test_step_count_is_replaced_and_never_changed_in_place() -> None:
    """DeepSpeed hands out one step tensor to several parameters after loading a universal checkpoint."""
    params = leaves((2,), (3,))
    optimizer = ADOPT(params)
    train(optimizer, params, range(1))
    shared = torch.tensor(10.0)
    for p in params:
        optimizer.state[p]["step"] = shared
    train(optimizer, params, range(1))
    assert [optimizer.state[p]["step"].item() for p in params] == [11.0, 11.0]
    assert shared == 10


def child_steps(params: list[Tensor], optimizer: ADOPT, done: Any) -> None:
    for step in range(3, 6):
        give_gradients(params, step)
        optimizer.step()
    done.set()


@pytest.mark.parametrize("warmup", [False, True])
def test_a_state_in_shared_memory_is_counted_where_it_lies(warmup: bool) -> None:
    """A3C's pattern: processes that were forked step on one model with one state, one after the other here."""
    params, expected = leaves((3, 4), (5,)), leaves((3, 4), (5,))
    optimizer, alone = ADOPT(params, beta2_warmup=warmup), ADOPT(expected, beta2_warmup=warmup)
    train(optimizer, params, range(1))
    for p in params:
        p.data.share_memory_()
        for t in optimizer.state[p].values():
            t.share_memory_()
    counts = [optimizer.state[p]["step"] for p in params]
    train(optimizer, params, range(1, 3))
    context = torch.multiprocessing.get_context("fork")
    done = context.Event()
    child = context.Process(target=child_steps, args=(params, optimizer, done))
    child.start()
    child.join()
    assert done.is_set()
    assert [count.item() for count in counts] == [6.0, 6.0]
    train(optimizer, params, range(6, 8))  # goes on from where the child has stopped
    train(alone, expected, range(8))
    assert [count.item() for count in counts] == [8.0, 8.0]
    assert_same(everything(optimizer, params), everything(alone, expected))


def test_param_groups_hold_plain_values() -> None:
    np = pytest.importorskip("numpy", reason="comes with transformers, not with torch")
    optimizer = ADOPT(leaves((2,)), lr=np.float64(0.1), betas=[np.float32(0.5), 0.9], eps=np.float64(1e-6))
    group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    assert group == {
        "lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-6, "weight_decay": 0.0, "decouple": False, "clip_exp": 0.25,
        "beta2_warmup": False, "maximize": False, "backend": "auto", "capturable": False,
        "state_bits": 32, "block_size": 256, "bf16_stochastic_round": False, "seed": 0,
    }  # fmt: skip
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == optimizer.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("route", ["state_dict", "weights_only", "pickle", "deepcopy", "accelerate round trip"])
def test_resumed_is_uninterrupted_bit_for_bit(route: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"lr": 0.01, "clip_exp": 0.3, "weight_decay": 0.1, "decouple": True, "beta2_warmup": True}
    through = leaves((3, 4), (5,), dtype=dtype)
    straight = ADOPT(through, **options)
    train(straight, through, range(12))

    first_half = leaves((3, 4), (5,), dtype=dtype)
    optimizer = ADOPT(first_half, **options)
    train(optimizer, first_half, range(6))
    if route in ("pickle", "deepcopy"):
        resumed = pickle.loads(pickle.dumps(optimizer)) if route == "pickle" else copy.deepcopy(optimizer)
        params = resumed.param_groups[0]["params"]
    else:
        params = [p.detach().clone().requires_grad_() for p in first_half]
        resumed = ADOPT(params, lr=99.0)
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        resumed.load_state_dict(torch.load(buffer, weights_only=route == "weights_only"))
        if route == "accelerate round trip":
            resumed.load_state_dict(resumed.state_dict())
    train(resumed, params, range(6, 12))
    assert_same(everything(resumed, params), everything(straight, through))


def test_moments_of_16_bit_parameters_stay_single_precision_on_load() -> None:
    params = leaves((4,), dtype=torch.bfloat16)
    optimizer = ADOPT(params)
    train(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    seen_by_post_hook = []
    optimizer.register_load_state_dict_post_hook(
        lambda o: seen_by_post_hook.append(o.state[params[0]]["exp_avg_sq"].dtype)
    )
    optimizer.load_state_dict(saved)
    state = optimizer.state[params[0]]
    assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (torch.float32, torch.float32)
    assert torch.equal(state["exp_avg_sq"], saved["state"][0]["exp_avg_sq"])
    assert seen_by_post_hook == [torch.float32]
    assert len(optimizer._optimizer_load_state_dict_post_hooks) == 1  # ours are taken off again


def test_load_keeps_the_backend_and_what_the_saved_group_lacks() -> None:
    saved = ADOPT(leaves((2,)), lr=0.5, backend="reference", clip_exp=0.5).state_dict()
    del saved["param_groups"][0]["clip_exp"]
    optimizer = ADOPT(leaves((2,)), backend="foreach", clip_exp=None)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["backend"], group["clip_exp"]) == (0.5, "foreach", None)


def adam_state(kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> dict[str, Any]:
    params = leaves((2, 3))
    optimizer = kind(params)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    return optimizer.state_dict()


def state_with(change: dict[str, Any] | None = None, shape: tuple[int, ...] = (2, 3), **group: Any) -> dict[str, Any]:
    params = leaves(shape)
    optimizer = ADOPT(params)
    train(optimizer, params, range(1))
    saved = optimizer.state_dict()
    saved["param_groups"][0] |= group
    if change is not None:
        saved["state"][0] = change
    return saved


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (adam_state(), "state of Adam or one of its kind"),
        (adam_state(torch.optim.NAdam), "state of Adam or one of its kind"),
        (adam_state(torch.optim.RAdam), "state of Adam or one of its kind"),
        (state_with(lr=-1.0), "lr must be a finite number >= 0, got -1.0"),
        (state_with(caution=True), "trained with caution=True"),
        (state_with(shape=(3, 2)), r"parameter 0 has exp_avg of shape \(3, 2\), the parameter has \(2, 3\)"),
        (state_with({"momentum_buffer": torch.ones(2, 3)}), "has momentum_buffer but not exp_avg, exp_avg_sq, step"),
        (
            state_with({"step": -1.0, "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}),
            "step -1.0, which must",
        ),
        ({"state": {}, "param_groups": []}, "different number of parameter groups"),
    ],
)
def test_foreign_state_is_refused_and_nothing_changed(saved: dict[str, Any], message: str) -> None:
    params = leaves((2, 3))
    optimizer = ADOPT(params)
    train(optimizer, params, range(2))
    before, groups = [t.clone() for t in everything(optimizer, params)], copy.deepcopy(optimizer.param_groups)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert_same(everything(optimizer, params), before)
    assert str(optimizer.param_groups) == str(groups)


def test_param_groups_say_whether_they_are_adopts() -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    assert saved_groups.is_adopt(ADOPT([weight]).param_groups)
    assert saved_groups.is_adopt(LayerwiseADOPT([torch.nn.Parameter(torch.zeros(2))]).state_dict()["param_groups"])
    for other in (torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.SGD):
        assert not saved_groups.is_adopt(other([weight]).state_dict()["param_groups"])


# -- state of other ADOPTs ---------------------------------------------------------------------------------------------


def torch_adopt() -> type[torch.optim.Optimizer]:
    module = pytest.importorskip("adopt", reason="torch-adopt is installed by the dev extra")
    # It calls a private method that torch has renamed since.
    module.ADOPT._cuda_graph_capture_health_check = lambda self: None
    return module.ADOPT


def timm_adopt() -> type[torch.optim.Optimizer]:
    """timm's file alone: its package imports torchvision, which would replace the CPU build of torch."""
    apart = Path(sys.prefix, "peers", "timm")
    spec = importlib.util.find_spec("timm")
    root = apart if apart.is_dir() else Path(spec.origin).parent if spec is not None and spec.origin else None
    if root is None:
        pytest.skip("timm is not installed; `make test` puts it into .venv/peers")
    for name in ("timm", "timm.optim"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    try:
        return importlib.import_module("timm.optim.adopt").Adopt
    finally:
        for name in [n for n in sys.modules if n == "timm" or n.startswith("timm.")]:
            del sys.modules[name]


PEERS = {
    "torch-adopt": (torch_adopt, {"weight_decay": 0.1, "decouple": True, "foreach": False}, {}),
    "torch-adopt coupled": (torch_adopt, {"weight_decay": 0.1, "foreach": False}, {}),
    "timm": (timm_adopt, {"weight_decay": 0.1, "decoupled": True, "foreach": False}, {"clip_exp": 0.333}),
    "timm 1/4": (timm_adopt, {"weight_decay": 0.1, "clip_exp": 0.25, "foreach": True}, {}),
}


@pytest.mark.filterwarnings("ignore:.*is_compiling.*")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("peer", PEERS)
def test_goes_on_where_another_adopt_stopped(peer: str, backend: str) -> None:
    """Ten steps of the other one, its state loaded here: the next ten are the ones it would have done."""
    load, options, expected_group = PEERS[peer]
    theirs = leaves((3, 4), (5,))
    other = load()(theirs, lr=0.01, **options)
    train(other, theirs, range(10))
    ours = [p.detach().clone().requires_grad_() for p in theirs]
    optimizer = ADOPT(ours, backend=backend)
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in expected_group} == expected_group
    assert not group.keys() & {"foreach", "fused", "caution", "decoupled"}
    assert group["capturable"] is False
    assert {s["step"].dtype for s in optimizer.state.values()} == {torch.float32}
    train(other, theirs, range(10, 20))
    train(optimizer, ours, range(10, 20))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        assert not torch.equal(p, torch.zeros_like(p))


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1}, ValueError, "lr must be a finite number >= 0, got -1"),
        ({"betas": (0.9, 1.0)}, ValueError, r"beta2 = betas\[1\] must be a number in \[0, 1\), got 1.0"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*, got 'cuda'"),
        ({"backend": "foreach", "capturable": True}, RuntimeError, "backend='foreach' cannot run on cpu"),
        ({"capturable": 1}, ValueError, "capturable must be True or False, got 1"),
        ({"differentiable": True}, TypeError, "it is not supported.* no hyperparameter gets a grad"),
        ({"clip_lambda": None}, TypeError, "write clip_exp=0.25 .* or clip_exp=None for clip_lambda=None"),
        ({"fused": True}, TypeError, "no argument 'fused': write backend='fused'"),
        ({"amsgrad": True}, TypeError, "no argument 'amsgrad'"),
        ({"weight_decay": lambda step: step**0.25}, TypeError, "For a clip_lambda, write clip_exp=0.25"),
    ],
)
def test_bad_arguments_are_refused_at_construction_and_in_add_param_group(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ADOPT(leaves((2,)), **options)
    optimizer = ADOPT(leaves((2,)))
    if "amsgrad" not in options and not callable(options.get("weight_decay")):
        with pytest.raises(error):
            optimizer.add_param_group({"params": leaves((3,)), **options})
    assert len(optimizer.param_groups) == 1


def test_add_param_group_takes_the_defaults_and_trains() -> None:
    old, new = leaves((2,)), leaves((3,), seed=5)
    optimizer = ADOPT(old, lr=0.1)
    train(optimizer, old, range(3))
    optimizer.add_param_group({"params": new, "lr": 0.2, "name": "head"})
    assert (optimizer.param_groups[1]["lr"], optimizer.param_groups[1]["betas"]) == (0.2, (0.9, 0.9999))
    before = new[0].detach().clone()
    train(optimizer, [*old, *new], range(3, 5))
    assert [optimizer.state[p]["step"].item() for p in (*old, *new)] == [5.0, 2.0]
    assert not torch.equal(new[0], before)


def test_sparse_gradients_are_refused_before_anything_changes() -> None:
    dense, table = leaves((2,), (5, 3))
    optimizer = ADOPT([dense, table])
    dense.grad = torch.ones_like(dense)
    table.grad = torch.sparse_coo_tensor([[1]], torch.ones(1, 3, dtype=torch.float64), (5, 3))
    before = dense.detach().clone()
    with pytest.raises(RuntimeError, match="ADOPT does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, before)
    assert len(optimizer.state) == 0


def test_each_backend_is_run_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name, row in backends.TABLE.items():
        spies = [backend._replace(step=lambda buckets, name=name: called.append(name)) for backend in row]
        monkeypatch.setitem(backends.TABLE, name, tuple(spies))
    for backend in BACKENDS:
        params = leaves((2,))
        train(ADOPT(params, backend=backend), params, range(1))
    assert called == list(backends.NAMES)


# -- DTensor -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=str)
def test_dtensors_are_updated_through_their_local_shards(backend: str, placement: Any, mesh: Any) -> None:
    plain = leaves((4, 3), (5,), dtype=torch.float32)
    sharded = [distribute_tensor(p.detach().clone(), mesh, [placement]).requires_grad_() for p in plain]
    one, other = ADOPT(plain, backend=backend), ADOPT(sharded, backend=backend)
    for step in range(5):
        give_gradients(plain, step)
        for p, q in zip(plain, sharded, strict=True):
            q.grad = distribute_tensor(p.grad, mesh, [placement])
        one.step()
        other.step()
    for p, q in zip(plain, sharded, strict=True):
        assert torch.equal(p, q.full_tensor())
        assert isinstance(other.state[q]["exp_avg"], DTensor)
        assert torch.equal(one.state[p]["exp_avg_sq"], other.state[q]["exp_avg_sq"].full_tensor())


# -- backends ----------------------------------------------------------------------------------------------------------


def test_a_resumed_run_may_change_the_backend() -> None:
    """Every three steps another one, from the saved state of the last: the trajectory of a single one, to rounding."""
    params, expected = leaves((4, 3), (5,)), leaves((4, 3), (5,))
    options = {"lr": 0.01, "weight_decay": 0.1, "decouple": True}
    whole, optimizer = ADOPT(expected, backend="reference", **options), ADOPT(params, **options)
    for i, backend in enumerate((*BACKENDS, *reversed(BACKENDS))):
        resumed = ADOPT(params, backend=backend, **options)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert resumed.param_groups[0]["backend"] == backend
        optimizer = resumed
        train(optimizer, params, range(3 * i, 3 * i + 3))
        train(whole, expected, range(3 * i, 3 * i + 3))
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"], whole.state[q]["exp_avg_sq"], rtol=1e-12, atol=0)
