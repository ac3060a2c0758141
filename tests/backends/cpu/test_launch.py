"""The compiled CPU kernel, beyond what every backend's tests hold (test_backends):

- it rounds as the definition does: results are the reference's to the bit, in every dtype;
- 16-bit numbers are read and rounded as torch does, all of them;
- threads: as many as torch has, ended with the call, the result the same with any number; after a fork as well;
- other Python threads run meanwhile; autograd notices that parameters were changed;
- whatever can lie in a param group works: views, negative and complex ones, gradients of other layouts and dtypes.
"""

import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from adopt_hf import ADOPT, backends
from adopt_hf.algorithm import StepScalars, step_scalars
from adopt_hf.backends.bucket import Bucket
from adopt_hf.backends.cpu import launch as cpu
from adopt_hf.backends.dense import is_plain
from tests.backends.test_backends import CASES, Case, state
from tests.oracle import Settings
from tests.support.processes import python
from tests.support.tensors import same_bits

NEUTRAL = StepScalars(scale=1.0, l2=0.0, decay=1.0, eps=1.0, clip=1.0, beta1=1.0, beta2=1.0, lr=1.0)

pytestmark = pytest.mark.skipif(
    backends.CPU.why_not(torch.device("cpu"), torch.float32) is not None,
    reason=f"{backends.CPU.why_not(torch.device('cpu'), torch.float32)}",
)


def same_values(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad_dtype", [None, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_are_the_references_to_the_bit(
    case: Case, grad_dtype: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a correctly rounded root: that of MKL, which torch uses, is off in the last place now and then."""

    def root(t: Tensor) -> Tensor:  # rounding twice, to double and then to single precision, is rounding once
        return torch.tensor([math.sqrt(x) for x in t.flatten().tolist()], dtype=torch.float64).view(t.shape).to(t.dtype)

    monkeypatch.setattr(Tensor, "sqrt", root)
    s = step_scalars(vars(case.settings), case.t)
    results = []
    for backend in (backends.REFERENCE, backends.CPU):
        p, g, m, v = state(case, "cpu")
        g = [t.to(grad_dtype or t.dtype) for t in g]
        for _ in range(3):
            backend.step([Bucket(p, g, m, v, s)])
        results.append([*p, *m, *v])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number_is_read_and_written_as_it_is(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    p, still, g = every.clone(), every.clone(), torch.zeros_like(every)
    m, zeros, ones = torch.zeros(2**16), torch.zeros(2**16), torch.ones(2**16)
    s = NEUTRAL._replace(beta1=0.0, clip=float("inf"), lr=0.0)
    backends.CPU.step([Bucket([p, still], [every, g], [m, zeros], [ones.clone(), ones.clone()], s)])
    assert same_values(still, every)
    assert same_values(m, every.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_float32_is_rounded_to_16_bits_as_torch_does(dtype: torch.dtype) -> None:
    """All of them in steps of 2^10 - 1 and around every power of two: a tie, and the neighbours of each tie."""
    steps = torch.arange(-(2**31), 2**31, 1023)
    around = torch.tensor([[e << 23, (e << 23) + (1 << 12), (e << 23) + (1 << 15)] for e in range(256)])
    ties = (around.view(-1, 1, 1) + torch.tensor([[0], [1 << 13], [1 << 16]]) + torch.arange(-2, 3)).flatten()
    numbers = torch.cat([steps, ties, ties - 2**31]).clamp(-(2**31), 2**31 - 1).to(torch.int32).view(torch.float32)
    numbers = numbers[~numbers.isinf()]
    p = torch.zeros(numbers.shape, dtype=dtype)
    m, v = -numbers, torch.zeros_like(numbers)
    backends.CPU.step([Bucket([p], [torch.zeros_like(p)], [m], [v], NEUTRAL)])
    assert same_values(p, numbers.to(dtype))


# -- threads -----------------------------------------------------------------------------------------------------------


def long(elements: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    p, g, m = (torch.randn(elements, dtype=torch.float32, generator=generator) for _ in range(3))
    return p, g, m, torch.rand(elements, dtype=torch.float32, generator=generator)


@pytest.fixture
def restore_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("elements", [1, 2**14 - 1, 2**14, 2**14 + 1, 300_000, 10_000_000])  # of 1 to 610 chunks
def test_the_number_of_threads_changes_nothing(elements: int) -> None:
    results = []
    for threads in (1, 2, 7, 1000):
        torch.set_num_threads(threads)
        p, g, m, v = long(elements)
        parts = [[t[: elements // 3] for t in (p, g, m, v)], [t[elements // 3 :] for t in (p, g, m, v)]]
        s = step_scalars(vars(Settings()), 5)
        cpu.step([Bucket([a], [b], [c], [d], s) for a, b, c, d in parts])
        results.append(torch.stack([p, m, v]))
    assert all(same_bits(results[0], other) for other in results[1:])


WATCH = """
import os, threading, time, torch
from adopt_hf import ADOPT
p = torch.zeros(20_000_000, requires_grad=True)
p.grad = torch.ones_like(p)
optimizer = ADOPT([p], backend="fused")
optimizer.step()

def tasks():
    return len(os.listdir("/proc/self/task"))

def most_threads_of_a_step():
    most, before = 0, tasks()
    for _ in range(30):
        stepping = threading.Thread(target=optimizer.step)
        stepping.start()
        while stepping.is_alive():
            most = max(most, tasks() - before)
        stepping.join()
        end = time.monotonic() + 20
        while tasks() > before:  # the kernel forgets them a moment later
            assert time.monotonic() < end, "threads are left"
    return most

print(torch.get_num_threads(), most_threads_of_a_step())
for n in (1, 3):
    torch.set_num_threads(n)
    print(n, most_threads_of_a_step())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("omp_num_threads", [1, 2])
def test_as_many_threads_as_torch_has(omp_num_threads: int) -> None:
    """A watching Python thread sees them, which also shows that the kernel does not hold the interpreter's lock."""
    out = python("-c", WATCH, env={"OMP_NUM_THREADS": str(omp_num_threads)})
    assert out.split("\n")[:3] == [f"{omp_num_threads} {omp_num_threads}", "1 1", "3 3"]


def train(steps: int) -> Tensor:
    p, *_ = long(100_000)
    p.requires_grad_()
    optimizer = ADOPT([p], backend="fused", lr=0.1)
    for step in range(steps):
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    return p.detach()


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_works_after_a_fork(tmp_path: Path) -> None:
    """The parent has used its threads, and the child uses as many, which OpenMP's would hang in.

    The child calls the kernel and nothing that torch does in parallel.
    """
    torch.set_num_threads(2)
    p, g, m, v = long(300_000)
    bucket = Bucket([p], [g], [m], [v], step_scalars(vars(Settings()), 5))
    expected = [t.clone() for t in (p, g, m, v)]
    cpu.step([bucket._replace(params=[expected[0]], exp_avgs=[expected[2]], exp_avg_sqs=[expected[3]])])
    child = os.fork()
    if child == 0:
        done = 1
        try:
            cpu.step([bucket])
            (tmp_path / "result").write_bytes(b"".join(t.numpy().tobytes() for t in (p, m, v)))
            done = 0
        finally:
            os._exit(done)
    assert os.waitpid(child, 0)[1] == 0
    assert (tmp_path / "result").read_bytes() == b"".join(expected[i].numpy().tobytes() for i in (0, 2, 3))


class Training(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return train(2)


def test_it_works_in_the_workers_of_a_dataloader() -> None:
    expected = train(2)
    loader = torch.utils.data.DataLoader(Training(), num_workers=2, batch_size=None)
    assert all(torch.equal(result, expected) for result in loader)


def test_steps_of_several_python_threads_do_not_disturb_each_other() -> None:
    expected, results = train(3), []
    threads = [threading.Thread(target=lambda: results.append(train(3))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, expected) for result in results)


# -- tensors -----------------------------------------------------------------------------------------------------------


def test_autograd_notices_the_change() -> None:
    w = torch.ones(3, requires_grad=True)
    loss = (w * w).sum()
    w.grad = torch.ones(3)
    optimizer = ADOPT([w], backend="fused")
    optimizer.step()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def negative_view(shape: tuple[int, ...]) -> Tensor:
    """A tensor of random numbers in memory that holds their negatives."""
    z = torch.complex(torch.zeros(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64))
    view = z.conj().imag
    assert view.is_neg()
    return view


GRADIENTS = {
    "expanded": lambda shape: torch.tensor(0.5, dtype=torch.float64).expand(shape),
    "transposed": lambda shape: torch.randn(shape[::-1], dtype=torch.float64).T,
    "strided": lambda shape: torch.randn((*shape, 2), dtype=torch.float64)[..., 1],
    "negative view": negative_view,
    "at an odd address": lambda shape: torch.randn(torch.Size(shape).numel() + 1, dtype=torch.float64)[1:].view(shape),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_that_are_views(kind: str) -> None:
    results = []
    for backend in ("reference", "fused"):
        torch.manual_seed(0)
        p = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
        optimizer = ADOPT([p], backend=backend, lr=0.1)
        for _ in range(4):
            p.grad = GRADIENTS[kind]((5, 7))
            before = p.grad.clone()
            optimizer.step()
            assert torch.equal(p.grad, before)
        results.append(torch.stack([p.detach(), *(optimizer.state[p][k] for k in ("exp_avg", "exp_avg_sq"))]))
    assert torch.equal(*results)
    assert not torch.equal(results[0][1], torch.zeros(5, 7))


def test_parameters_that_are_views() -> None:
    """A negative view, a strided one and a complex one, with the memory between their elements unchanged."""
    results = []
    for backend in ("reference", "fused"):
        torch.manual_seed(0)
        wide = torch.randn(4, 6, dtype=torch.float64)
        params = [negative_view((3, 2)).detach(), wide[:, ::2], torch.randn(5, dtype=torch.complex128)]
        params = [p.requires_grad_() for p in params]
        assert [params[0].is_neg(), params[1].is_contiguous()] == [True, False]
        optimizer = ADOPT(params, backend=backend, lr=0.1)
        for _ in range(4):
            for p in params:
                p.grad = torch.randn_like(p)
            optimizer.step()
        results.append([*(p.detach().resolve_conj().resolve_neg() for p in params), wide])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_subclass_that_handles_operations_goes_to_foreach() -> None:
    """Its `data_ptr()` need not be the address of its values: this is what a collective that is under way returns."""
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    p.grad, q.grad = AsyncCollectiveTensor(torch.full((3,), 0.5)), torch.full((3,), 0.5)
    assert not is_plain(p.grad)
    optimizer = ADOPT([p, q])
    optimizer.step()
    optimizer.step()
    assert torch.equal(p, q)
    assert (p != 1).all()
    with pytest.raises(RuntimeError, match=r"'fused' cannot run .* which tensor subclasses do not expose"):
        ADOPT([p], backend="fused").step()


# -- what does not fit together ----------------------------------------------------------------------------------------


def stepped(backend: str, steps: int = 2, **options: Any) -> tuple[Tensor, ADOPT]:
    p = torch.nn.Parameter(torch.linspace(-1, 1, 40))
    optimizer = ADOPT([p], backend=backend, lr=0.1, **options)
    for _ in range(steps):
        p.grad = torch.linspace(1, 2, 40)
        optimizer.step()
    return p, optimizer


def cast(p: Tensor, optimizer: ADOPT) -> None:
    """As `model.double()` does, after the first steps."""
    p.data = p.data.double()
    p.grad = torch.ones(40, dtype=torch.float64)


def cast_back(p: Tensor, optimizer: ADOPT) -> None:
    p.data, p.grad = p.data.double(), None
    for t in (p.data, *optimizer.state[p].values()):
        t.data = t.data.double()
    p.data = p.data.float()
    p.grad = torch.ones(40)


def other_moments(p: Tensor, optimizer: ADOPT) -> None:
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[p][name] = optimizer.state[p][name].double()
    p.grad = torch.ones(40)


def number_as_step(p: Tensor, optimizer: ADOPT) -> None:
    optimizer.state[p]["step"] = 2.0
    p.grad = torch.ones(40)


def zero_tensor(p: Tensor, optimizer: ADOPT) -> None:
    p.grad = torch._efficientzerotensor((40,))


CHANGES = [cast, cast_back, other_moments, number_as_step, zero_tensor]


@pytest.mark.parametrize("backend", ["fused", "foreach"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_somebody_has_changed_is_trained_on(change: Any, backend: str) -> None:
    """The moments are given the dtype that they must have: the kernel would take their numbers for others."""
    results = []
    for name in ("reference", backend):
        p, optimizer = stepped(name)
        change(p, optimizer)
        optimizer.step()
        assert {t.dtype for k, t in optimizer.state[p].items() if k != "step"} == {p.dtype}
        results.append(p.detach())
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_a_late_parameter_with_other_moments_spoils_nobody_elses() -> None:
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    expected = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    results = []
    for backend, tensors in (("fused", params), ("reference", expected)):
        optimizer = ADOPT(tensors, backend=backend)
        for _ in range(3):
            for p in tensors:
                p.grad = torch.full((3,), 0.5)
            optimizer.step()
            for name in ("exp_avg", "exp_avg_sq"):
                optimizer.state[tensors[1]][name] = optimizer.state[tensors[1]][name].double()
        results.append([p.detach() for p in tensors])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("backend", ["fused", "auto"])
def test_sizes_that_do_not_fit_are_refused(backend: str) -> None:
    """A kernel would read and write beyond the end."""
    p, optimizer = stepped(backend)
    p.data = torch.ones(400_000)
    with pytest.raises(RuntimeError, match=r"are \(400000,\) on cpu, \(40,\).* must have one shape and device"):
        optimizer.step()
    p.grad = torch.ones(400_000)
    with pytest.raises(RuntimeError, match=r"must have one shape and device"):
        optimizer.step()
    assert torch.equal(p, torch.ones(400_000))


def test_a_whole_state_is_not_loaded_into_shards_nor_shards_into_a_whole(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain, whole = stepped("auto")
        sharded = torch.nn.Parameter(distribute_tensor(plain.detach().clone(), mesh, [Shard(0)]))
        sharded.grad = distribute_tensor(torch.ones(40), mesh, [Shard(0)])
        of_shards = ADOPT([sharded])
        of_shards.step()
        with pytest.raises(ValueError, match=r"exp_avg as a Tensor, the parameter is a DTensor: .*set_optimizer_state"):
            of_shards.load_state_dict(whole.state_dict())
        with pytest.raises(ValueError, match=r"exp_avg as a DTensor, the parameter is a Parameter: "):
            whole.load_state_dict(of_shards.state_dict())
        whole.state[plain]["exp_avg"] = of_shards.state[sharded]["exp_avg"]
        with pytest.raises(RuntimeError, match="either all of them must be DTensors, or none"):
            whole.step()
    finally:
        torch.distributed.destroy_process_group()


FLUSHED = """
import torch
from adopt_hf import ADOPT
assert torch.set_flush_denormal(True)
every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
p = torch.nn.Parameter(every[~every.isnan() & ~every.isinf()].clone())
before = p.detach().clone()
p.grad = torch.ones_like(p)
optimizer = ADOPT([p], backend="fused")
optimizer.step()
print(bool((p == before).all()))
"""


@pytest.mark.everyday
def test_small_float16_numbers_survive_where_subnormal_floats_are_flushed() -> None:
    """They are normal float32 numbers, and are read without a subnormal one on the way. A first step moves nothing."""
    assert python("-c", FLUSHED).split() == ["True"]


def test_all_buckets_of_a_step_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups, two dtypes, a late parameter: one parallel region."""
    library, calls = cpu._library(), []

    class Spy:
        def adopt_step(self, *args: Any) -> None:
            calls.append(args[1])
            library.adopt_step(*args)

    monkeypatch.setattr(cpu, "_library", lambda: Spy())
    params = [torch.ones(3, dtype=d, requires_grad=True) for d in (torch.float32, torch.bfloat16, torch.float32)]
    optimizer = ADOPT([{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], backend="fused")
    for step in range(3):
        for p in params[: 2 + (step > 0)]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert calls == [2, 3, 3]
