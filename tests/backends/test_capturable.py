"""`capturable=True` and `torch.amp.GradScaler`: what a step needs is on the device, and the update is the same.

- a capturable run is the ordinary one, whatever comes late, is zero at first, or is scheduled, in every backend that
  takes it; it never asks for a value, which the tests hold on a CPU by forbidding `item` and its kin;
- scaled gradients are unscaled, an overflow changes nothing, not even at the first step, with and without `unscale_`;
- `step` is on the device, is changed in place, and is saved and loaded;
- under `torch.compile` it is compiled once.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adopt_hf import ADOPT, algorithm, backends
from adopt_hf.distributed.flat import Partition, Stretch
from tests.backends.test_backends import BACKENDS
from tests.core.test_torch_compile import set_lr

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "coupled": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decouple": True},
    "all": {
        "betas": (0.8, 0.99),
        "eps": 1e-4,
        "weight_decay": 0.05,
        "decouple": True,
        "clip_exp": 0.5,
        "beta2_warmup": True,
        "maximize": True,
    },
    "no clipping": {"clip_exp": None, "beta2_warmup": 0.65},
    "constant clipping": {"clip_exp": 0.0},
}
SHAPES = ((4, 3), (5,), (), (2, 3))
DTYPES = (torch.float32, torch.float32, torch.float32, torch.bfloat16)


@pytest.fixture(params=["reference", "triton"])
def name(request: pytest.FixtureRequest) -> str:
    """The `backend` under which the optimizer finds the one that is tested."""
    backend = BACKENDS[request.param]
    reason = backend.why_not(torch.device("cpu"), torch.float32)
    if reason is not None:
        pytest.skip(reason)
    if request.param == "triton":  # "fused" on a CPU is another one, unless its numbers are on the device
        assert backends.choose("fused", torch.device("cpu"), torch.float32, capturable=True) is backend
        return "fused"
    return "reference"


def leaves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(shape, generator=generator) * 2 - 1).to(dtype).requires_grad_()
        for shape, dtype in zip(SHAPES, DTYPES, strict=True)
    ]


def give_gradients(params: list[Tensor], step: int, scale: float = 1.0) -> None:
    """One comes late, one is all zero at first, one has unseen elements."""
    generator = torch.Generator().manual_seed(1 + step)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator)
        if i == 1 and step < 3:
            p.grad = None
            continue
        if i == 3 and step < 2:
            grad = torch.zeros(p.shape)
        if i == 0:
            grad[0] *= step > 1
        p.grad = (grad * scale).to(p.dtype)


def assert_same_run(a: ADOPT, b: ADOPT) -> None:
    """To rounding: ten float32 roundings of numbers below 16 in each of up to nine steps. A bfloat16 parameter, which
    is below 2, may be rounded up in one and down in the other at each of them."""
    for p, q in zip(a.param_groups[0]["params"], b.param_groups[0]["params"], strict=True):
        for x, y in ((p.detach(), q.detach()), *((a.state[p][k], b.state[q][k]) for k in b.state[q])):
            bound = 9 * (torch.finfo(x.dtype).eps if x.dtype == torch.bfloat16 else 160 * torch.finfo(x.dtype).eps)
            torch.testing.assert_close(x, y, rtol=0, atol=bound)


@contextmanager
def no_waiting() -> Iterator[None]:
    """To look at a tensor's value is an error: on a GPU it would wait, and a graph could not hold it."""

    def look(t: Tensor, *args: Any) -> Any:
        raise AssertionError("looked at a value")

    with pytest.MonkeyPatch.context() as patch:
        for method in ("item", "tolist", "__bool__", "__float__", "__int__"):
            patch.setattr(Tensor, method, look)
        yield


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["lr float", "lr tensor"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_capturable_run_is_the_ordinary_one(name: str, options: dict[str, Any], tensor_lr: bool) -> None:
    params, expected = leaves(), leaves()
    lr = torch.tensor(0.01) if tensor_lr else 0.01
    optimizer = ADOPT(params, lr, backend=name, capturable=True, **options)
    ordinary = ADOPT(expected, 0.01, backend="reference", **options)
    for step in range(8):
        give_gradients(params, step)
        give_gradients(expected, step)
        set_lr(optimizer, 0.01 / (1 + step))
        set_lr(ordinary, 0.01 / (1 + step))
        if name == "reference":
            with no_waiting():
                optimizer.step()
        else:
            optimizer.step()  # the interpreter looks at values itself
        ordinary.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [8, 5, 8, 6]
    assert_same_run(optimizer, ordinary)


def test_the_count_is_changed_in_place_as_a_graph_would_replay_it(name: str) -> None:
    (p, *_) = leaves()
    optimizer = ADOPT([p], backend=name, capturable=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    count = optimizer.state[p]["step"]
    optimizer.step()
    assert optimizer.state[p]["step"] is count
    assert count.item() == 2
    assert count.device == p.device


# -- GradScaler --------------------------------------------------------------------------------------------------------


OVERFLOWS = {0, 3}


@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscale_ first"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("backend", [*backends.NAMES])
def test_grad_scaler(backend: str, capturable: bool, unscale: bool) -> None:
    """Steps with an overflow, the very first among them, leave no trace; the others are those without a scaler."""
    try:
        backends.choose(backend, torch.device("cpu"), torch.float32, capturable=capturable)
    except RuntimeError as reason:
        pytest.skip(str(reason))
    params, expected = leaves()[:3], leaves()[:3]
    optimizer = ADOPT(params, 0.01, backend=backend, capturable=capturable, weight_decay=0.1, decouple=True)
    ordinary = ADOPT(expected, 0.01, backend="reference", weight_decay=0.1, decouple=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    scaler.scale(torch.zeros(()))  # makes the scale
    assert optimizer._step_supports_amp_scaling == capturable
    for step in range(8):
        give_gradients(params, step, scale=scaler.get_scale())
        if step in OVERFLOWS:
            params[2].grad.fill_(math.inf)
            before = [p.detach().clone() for p in params]
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert not hasattr(optimizer, "found_inf")
        if step not in OVERFLOWS:
            give_gradients(expected, step)
            ordinary.step()
        else:
            assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    assert scaler.get_scale() != 1024.0
    assert_same_run(optimizer, ordinary)


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
def test_a_scale_left_on_the_optimizer_is_honoured_by_every_kind_of_group(capturable: bool) -> None:
    """torch's optimizers take `grad_scale` and `found_inf` from their attributes, one without the other too."""
    params, expected = leaves()[:1], leaves()[:1]
    optimizer, ordinary = ADOPT(params, 0.01, capturable=capturable), ADOPT(expected, 0.01)
    for step in range(6):
        give_gradients(params, step, scale=8.0)
        give_gradients(expected, step)
        optimizer.grad_scale = torch.tensor([8.0])
        optimizer.found_inf = torch.tensor(1.0 if step == 2 else 0.0) if step % 2 == 0 else None
        optimizer.step()
        if step != 2:
            ordinary.step()
    assert_same_run(optimizer, ordinary)


# -- state -------------------------------------------------------------------------------------------------------------


def test_a_run_may_become_capturable_on_resume_and_back(name: str) -> None:
    params, expected = leaves(), leaves()
    ordinary = ADOPT(expected, 0.01, backend="reference")
    optimizer = ADOPT(params, 0.01)
    for step in range(9):
        if step in (3, 6):
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = ADOPT(params, 0.01, capturable=step == 3, backend=name)
            optimizer.load_state_dict(saved)
            assert optimizer.param_groups[0]["capturable"] == (step == 3)
        give_gradients(params, step)
        give_gradients(expected, step)
        optimizer.step()
        ordinary.step()
    assert_same_run(optimizer, ordinary)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_dtensors(name: str, mesh: Any) -> None:
    plain = leaves()[:2]
    sharded = [distribute_tensor(p.detach().clone(), mesh, [Shard(0)]).requires_grad_() for p in plain]
    one, other = ADOPT(plain, 0.01, backend="reference"), ADOPT(sharded, 0.01, backend=name, capturable=True)
    for step in range(6):
        give_gradients(plain, step)
        for p, q in zip(plain, sharded, strict=True):
            q.grad = None if p.grad is None else distribute_tensor(p.grad, mesh, [Shard(0)])
        one.step()
        other.step()
    for p, q in zip(plain, sharded, strict=True):
        assert isinstance(other.state[q]["exp_avg"], DTensor)
        torch.testing.assert_close(p.detach(), q.detach().full_tensor(), rtol=0, atol=1e-5)
        assert other.state[q]["step"].item() == one.state[p]["step"].item()


def test_flat_parameters_of_zero_are_refused() -> None:
    p = torch.zeros(4, requires_grad=True)
    optimizer = ADOPT([p], capturable=True)
    optimizer.set_partition(p, Partition(1, [Stretch(0, 0, 4)], lambda: [True], lambda counts: None))
    p.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="capturable=True cannot run on the flat parameters of ZeRO"):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"state_bits": 8}, "state_bits=8 cannot be combined with capturable=True"),
        ({"state_bits": 16}, "state_bits=16 cannot be combined with capturable=True"),
        ({"bf16_stochastic_round": True}, "bf16_stochastic_round=True cannot be combined with capturable=True"),
        ({"backend": "foreach"}, "backend='foreach' cannot run"),
    ],
    ids=str,
)
@pytest.mark.parametrize("begun", [False, True], ids=["before the first step", "after three steps"])
def test_options_that_a_group_is_given_later_are_refused(written: dict[str, Any], message: str, begun: bool) -> None:
    """The second group's, before the first one is updated."""
    params = [torch.nn.Parameter(torch.ones(64, 128)) for _ in range(2)]
    optimizer = ADOPT([{"params": params[:1]}, {"params": params[1:]}], capturable=True)
    for _ in range(3 if begun else 0):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    before = copy.deepcopy([*params, optimizer.state_dict()["state"]])
    optimizer.param_groups[1].update(written)
    for p in params:
        p.grad = torch.ones_like(p)
    with pytest.raises((ValueError, RuntimeError), match=message):
        optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before[:2], strict=True))
    if begun:
        torch.testing.assert_close(optimizer.state_dict()["state"], before[2], rtol=0, atol=0)


@pytest.mark.everyday
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["lr float", "lr tensor"])
def test_compiled(tensor_lr: bool) -> None:
    """Of one device and without a late gradient it is compiled once."""
    torch._dynamo.reset()
    params, expected = leaves()[:1], leaves()[:1]
    optimizer = ADOPT(params, torch.tensor(0.01) if tensor_lr else 0.01, capturable=True)
    ordinary = ADOPT(expected, 0.01, backend="reference")
    step_compiled = torch.compile(optimizer.step, backend="eager")
    for step in range(6):
        give_gradients(params, step)
        give_gradients(expected, step)
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            step_compiled()
        ordinary.step()
    assert_same_run(optimizer, ordinary)


class Dtypes(TorchDispatchMode):
    """Notes the dtypes of all results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {t.dtype for t in tree_leaves(out) if isinstance(t, Tensor)}
        return out


@pytest.mark.parametrize("options", OPTIONS)
def test_no_float64_is_made_where_the_device_has_none(options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Apple's GPUs, whose tensors cannot be had here: the CPU is said to have no float64."""
    assert algorithm.widest_dtype(torch.device("mps")) == torch.float32
    ends = []
    for wide in (torch.float64, torch.float32):
        monkeypatch.setattr(algorithm, "widest_dtype", lambda device, wide=wide: wide)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
        optimizer = ADOPT(params, lr=torch.tensor(0.01), backend="reference", capturable=True, **OPTIONS[options])
        with Dtypes() as dtypes:
            for _ in range(5):
                for p in params:
                    p.grad = torch.randn(p.shape)
                optimizer.step()
        assert (torch.float64 in dtypes.seen) == (wide == torch.float64)
        ends.append(params)
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q)
