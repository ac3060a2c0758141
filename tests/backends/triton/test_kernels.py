"""The properties of the Triton kernel only; `test_backends.py` compares it with the definition, dtype by dtype.

Without a GPU it runs in Triton's interpreter, and is compiled for GPUs in another process, where its machine code is
read. Nothing here says how fast it is.
"""

import copy
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adopt_hf import ADOPT, LayerwiseADOPT, backends
from adopt_hf.algorithm import state_dtype, step_scalars
from adopt_hf.backends import reference
from adopt_hf.backends.bucket import Bucket, CapturableBucket, Memory
from adopt_hf.backends.triton import launch as backend
from experiments.gpu import interpreter  # noqa: F401
from tests.oracle import Settings

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # numpy's, of inf and NaN

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = Path(backend.__file__).with_name("kernels.py")


@pytest.fixture(autouse=True)
def kernels() -> Any:
    """The module of the kernels."""
    reason = backend.why_not(DEVICE, torch.float32)
    if reason is not None:
        pytest.skip(reason)
    return backend._kernels()


SETTINGS = {
    "defaults": Settings(),
    "coupled": Settings(weight_decay=0.1, maximize=True),
    "decoupled": Settings(weight_decay=0.1, decouple=True, lr=0.1),
    "no clipping": Settings(clip_exp=None, eps=1e-2),
    "constant clipping": Settings(clip_exp=0.0),
    "other numbers": Settings(betas=(0.3, 0.9), clip_exp=0.5, eps=1e-3, beta2_warmup=0.8),
}


def columns(sizes: list[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> list[list[Tensor]]:
    """theta, g, m, v on the CPU, as they may stand in mid-training: some elements have not been observed."""
    torch.manual_seed(seed)
    moments = state_dtype(dtype)
    seen = [torch.rand(n) > 0.2 for n in sizes]
    return [
        [torch.randn(n).to(dtype) for n in sizes],
        [(torch.randn(n) * torch.randn(n).mul(2).exp()).to(dtype) for n in sizes],
        [torch.randn(n, dtype=moments) * there for n, there in zip(sizes, seen, strict=True)],
        [torch.rand(n, dtype=moments) * there for n, there in zip(sizes, seen, strict=True)],
    ]


def cloned(lists: list[list[Tensor]]) -> list[list[Tensor]]:
    return [[t.to(DEVICE, copy=True) for t in column] for column in lists]


def assert_same(got: list[list[Tensor]], wanted: list[list[Tensor]]) -> None:
    """Equal to what a few roundings more or less can change, of a 16-bit number to one in its last place."""
    for column, expected in zip(got, wanted, strict=True):
        for a, b in zip(column, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


# -- which elements: sizes, alignment, addresses ----------------------------------------------------------------------


def placed(t: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """A copy of `t` that starts at that element of 16-byte aligned memory, and that memory, 7 elsewhere."""
    memory = torch.full((offset + t.numel() + 40,), 7, dtype=t.dtype, device=DEVICE)
    assert memory.data_ptr() % 16 == 0
    view = memory[offset : offset + t.numel()]
    view.copy_(t)
    return view, memory


@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float16)],
    ids=str,
)
def test_sizes_and_alignment_change_nothing_and_neighbours_stay(
    kernels: Any, dtype: torch.dtype, grad_dtype: torch.dtype
) -> None:
    """In one launch: tensors of around a block and a chunk, each of the four aligned and not, and empty ones."""
    block, chunk = kernels.BLOCK.value, kernels.CHUNK.value
    offsets = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 1, 1), (4, 8, 4, 4)]
    sizes = [0, 1, 4, block - 1, block, block + 1, 0, 2 * block + 5]
    four = columns([*sizes * len(offsets), chunk, chunk + 1, 2 * chunk - 1, 2 * chunk + block + 3], dtype)
    four[1] = [g.to(grad_dtype) for g in four[1]]
    offsets = [offset for offset in offsets for _ in sizes] + [(0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 0)]
    wanted = cloned(four)
    there = [[placed(t, o[i]) for t, o in zip(column, offsets, strict=True)] for i, column in enumerate(four)]
    got = [[view for view, _ in column] for column in there]
    s = step_scalars(vars(Settings(weight_decay=0.1)), 7)
    backend.step([Bucket(*got, s)])
    reference.step([Bucket(*wanted, s)])
    assert_same(got, wanted)
    for i, column in enumerate(there):
        for (view, memory), o in zip(column, offsets, strict=True):
            assert memory[: o[i]].eq(7).all()
            assert memory[o[i] + view.numel() :].eq(7).all()


def test_elements_beyond_2_to_the_31(kernels: Any) -> None:
    """The last chunk of such a tensor is where its address says. Of the tensor only these elements exist."""
    chunk, n = kernels.CHUNK.value, 300
    beyond = 3 * 2**31
    before = beyond // chunk
    four = columns([n])
    got, wanted = cloned(four), cloned(four)
    addresses = [(column[0].data_ptr() - beyond * 4,) for column in got]
    table, _ = backend._new((beyond + n,), addresses, DEVICE, 0)
    assert table.programs == before + 1
    assert table.chunks.numel() == before + 1
    table.rows[6] = -before  # as if the first program came after those of the elements that do not exist
    s = step_scalars(vars(Settings()), 7)
    numbers = (s.scale, s.l2, s.decay, s.eps, s.clip, 1 - s.beta1, s.beta2, 1 - s.beta2, s.lr)
    types = [kernels.TYPES[torch.float32]] * 3
    kernels.update[(1,)](table.rows, table.chunks, 1, *numbers, *types, False, **kernels.OPTIONS)
    reference.step([Bucket(*wanted, s)])
    assert_same(got, wanted)


def test_numbers_too_small_to_be_normal_are_not_zero() -> None:
    """v of 1e-41 has been observed: `new` of (2) is a comparison with zero, where subnormal numbers are not flushed."""
    four = [torch.full((2000,), x, device=DEVICE) for x in (1.0, 1e-20, 0.5, 1e-41)]
    p, g, m, v = (t.clone() for t in four)
    s = step_scalars(vars(Settings(eps=0.0)), 7)
    backend.step([Bucket([p], [g], [m], [v], s)])
    assert v.min() > 0
    assert torch.allclose(m, torch.full_like(m, 0.45 + 0.1 * min(1e-20 / math.sqrt(1e-41), 7**0.25)), rtol=1e-5)


def test_autograd_is_told_of_parameters() -> None:
    """Moments are in no graph, and a call a tensor takes the host time in every step."""
    four = cloned(columns([5, 0]))
    versions = [[t._version for t in column] for column in four]
    backend.step([Bucket(*four, step_scalars(vars(Settings()), 7))])
    for index, (column, before) in enumerate(zip(four, versions, strict=True)):
        for t, version in zip(column, before, strict=True):
            assert (t._version > version) == (index == 0)


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[backend.Table]:
    """The tables as they are built, by an ADOPT with the fused backend among others."""
    tables = []
    new = backend._new

    def recorded(*args: Any) -> tuple[backend.Table, Tensor]:
        made = new(*args)
        tables.append(made[0])
        return made

    monkeypatch.setattr(backend, "_new", recorded)
    monkeypatch.setitem(backends.TABLE, "fused", (backends.TRITON,))
    return tables


@dataclass
class Pair:
    """The same parameters twice: one set for the kernel, the other for the definition."""

    sizes: tuple[int, ...] = (300, 7, 2000)
    cls: type[ADOPT] = ADOPT
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        self.sets = [[torch.nn.Parameter(p.clone()) for p in cloned(columns(list(self.sizes)))[0]] for _ in range(2)]
        fused, reference_ = ({"backend": name, "weight_decay": 0.1, **self.options} for name in ("fused", "reference"))
        self.optimizers = [self.cls(self.sets[0], **fused), self.cls(self.sets[1], **reference_)]

    def step(self, fresh: bool = True) -> None:
        """A step with new gradients, in new tensors or in the old ones."""
        self.seed += 1
        grads = cloned(columns(list(self.sizes), seed=self.seed))[1]
        for params, optimizer in zip(self.sets, self.optimizers, strict=True):
            if self.cls is LayerwiseADOPT:
                torch.stack([(p * g).sum() for p, g in zip(params, grads, strict=True)]).sum().backward()
            for p, g in zip(params, grads, strict=True):
                if fresh and self.cls is ADOPT:
                    p.grad, self.kept = g.clone(), p.grad
                elif self.cls is ADOPT:
                    assert p.grad is not None
                    p.grad.copy_(g)
            optimizer.step()
        assert_same(*[[[p.detach() for p in params]] for params in self.sets])


def test_a_table_is_built_once_and_copied_only_where_an_address_has_changed(built: list[backend.Table]) -> None:
    both = Pair()
    for _ in range(2):
        both.step()
    built.clear()
    both.step()
    assert len(built) == 0
    table = both.optimizers[0].kept_plans[None].entries[0].bucket.memory.prepared
    copies = table.rows._version
    both.step(fresh=False)
    assert table.rows._version == copies
    for more in range(1, 4):  # gradients move every step under set_to_none=True
        both.step()
        assert table.rows._version == copies + more
    for optimizer in both.optimizers:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    both.step()
    assert len(built) == 1
    for params in both.sets:
        params[0].data = params[0].data.clone()
    both.step()
    assert len(built) == 2


@pytest.mark.parametrize("options", [{"state_bits": 16}, {"state_bits": 8}, {"capturable": True}], ids=str)
def test_other_kinds_keep_their_tables_too(built: list[backend.Table], options: dict[str, Any]) -> None:
    both = Pair(sizes=(300, 4100), options=options)
    for _ in range(2):
        both.step()
    built.clear()
    for _ in range(2):
        both.step()
    assert len(built) == 0


def test_a_layerwise_optimizer_keeps_the_table_of_every_parameter(built: list[backend.Table]) -> None:
    both = Pair(sizes=tuple(range(1, 71)), cls=LayerwiseADOPT)
    for _ in range(2):
        both.step()
    built.clear()
    both.step()
    assert len(built) == 0


def test_a_step_that_fails_leaves_no_table(built: list[backend.Table], monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that the kernel has begun to read must not be written to, nor taken for complete."""
    both = Pair()
    for _ in range(2):
        both.step()
    entry = both.optimizers[0].kept_plans[None].entries[0]

    def failing(table: backend.Table, row: int, numbers: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(backend.Table, "write", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            both.optimizers[0].step()
    assert entry.bucket.memory.prepared is None
    both.optimizers[1].step()
    both.optimizers[0].step()
    both.step()


# -- steps whose numbers are on the device ----------------------------------------------------------------------------


@dataclass
class Training:
    """Some parameters through the steps of a capturable optimizer; `run` gives theta, m, v and t at the end."""

    settings: Settings
    lr: float | torch.dtype = torch.float32  # a number, or the dtype of a tensor that is changed in place
    dtype: torch.dtype = torch.float32
    grad_dtype: torch.dtype = torch.float32
    scale: float | None = None
    overflows: tuple[int, ...] = ()  # steps with an overflow; the very first among them
    found_inf: bool = True
    agree: Callable[[Tensor], None] | None = None
    steps: int = 7

    def run(self, step: Callable[[list[CapturableBucket]], None]) -> list[list[Tensor]]:
        sizes = [7, 300, 0, 1, 16_500, 17_000, 2000]
        p, _, m, v = cloned(columns(sizes, self.dtype))
        for i in (0, 1, 2, 3, 5):  # 4 has been observed at t == 0, 6 has done 5 steps
            m[i].zero_()
            v[i].zero_()
        t = [torch.zeros((), device=DEVICE) for _ in p]
        t[-1].fill_(5)
        group = vars(self.settings) | {"lr": self.settings.lr}
        if isinstance(self.lr, torch.dtype):
            group["lr"] = torch.tensor([self.settings.lr], dtype=self.lr, device=DEVICE)
        scale = None if self.scale is None else torch.full((1,), self.scale, device=DEVICE)
        found_inf = torch.zeros(1, device=DEVICE) if self.found_inf else None
        for i in range(self.steps):
            grads = [g.float() * (self.scale or 1) for g in columns(sizes, torch.float32, seed=100 + i)[1]]
            if i < 3:  # late
                grads[1].zero_()
                grads[5].zero_()
            if i == 3:  # one element in the last chunk, and a NaN
                grads[5][:-1] = 0
                grads[1][5] = math.nan
            grads[3].zero_()  # never
            if i == 4:
                grads[6].zero_()  # an all-zero gradient is a step like another, later
                grads[0].zero_()
            if i in self.overflows:
                grads[4][17] = math.inf
            if found_inf is not None:
                found_inf.fill_(float(i in self.overflows))
            if isinstance(group["lr"], Tensor):
                group["lr"].mul_(0.7)
            grads = [g.to(DEVICE, self.grad_dtype) for g in grads]
            step([CapturableBucket(p, grads, m, v, t, group, scale, found_inf, self.agree)])
        return [p, m, v, t]


TRAININGS = {
    **{name: Training(settings) for name, settings in SETTINGS.items()},
    "number lr": Training(SETTINGS["decoupled"], lr=0.1),
    "bfloat16 lr": Training(SETTINGS["decoupled"], lr=torch.bfloat16),
    "float64 lr": Training(SETTINGS["decoupled"], lr=torch.float64),
    "float64": Training(SETTINGS["coupled"], dtype=torch.float64, grad_dtype=torch.float64),
    "bfloat16": Training(SETTINGS["decoupled"], dtype=torch.bfloat16, grad_dtype=torch.bfloat16),
    "float16": Training(SETTINGS["other numbers"], dtype=torch.float16, grad_dtype=torch.float16),
    "float32 with bfloat16 gradients": Training(SETTINGS["defaults"], dtype=torch.float32, grad_dtype=torch.bfloat16),
    "scaled": Training(SETTINGS["coupled"], scale=1024.0),
    "scaled without found_inf": Training(SETTINGS["defaults"], scale=3.0, found_inf=False),
    "unscaled with found_inf": Training(SETTINGS["decoupled"], overflows=(0, 1, 4)),
    "overflow first": Training(SETTINGS["other numbers"], scale=1024.0, overflows=(0,)),
    "overflow at the late observation": Training(SETTINGS["defaults"], scale=1024.0, overflows=(3,)),
    "agreed": Training(SETTINGS["decoupled"], agree=lambda observed: observed.add_(2)),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_capturable_steps_are_those_of_the_reference(name: str) -> None:
    training = TRAININGS[name]
    assert_same(training.run(backend.step_capturable), training.run(reference.step_capturable))


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "clip exponent": ("defaults", {"clip_exp": 0.333}),
    "decay": ("decoupled", {"weight_decay": 0.11}),
    "coupling": ("decoupled", {"decouple": False}),
    "eps": ("no clipping", {"eps": 1.1e-2}),
    "warm-up": ("other numbers", {"beta2_warmup": False}),
    "beta2": ("defaults", {"betas": (0.9, 0.9998)}),
    "sign": ("coupled", {"maximize": False}),
    "clipping": ("no clipping", {"clip_exp": 1.0}),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_comparison_of_capturable_steps_sees_mistakes(mistake: str) -> None:
    name, changed = WRONG[mistake]
    training = TRAININGS[name]
    wrong = replace(training, settings=replace(training.settings, **changed))
    with pytest.raises(AssertionError):
        assert_same(wrong.run(reference.step_capturable), training.run(reference.step_capturable))


@pytest.mark.parametrize("name", ["scaled", "overflow first", "agreed"])
def test_a_training_counts_as_it_should(name: str) -> None:
    """So that the comparisons above compare something: late, never and at once observed, by hand."""
    *_, t = TRAININGS[name].run(backend.step_capturable)
    counts = {
        "scaled": [7, 4, 0, 0, 7, 4, 12],
        "overflow first": [6, 4, 0, 0, 6, 4, 11],
        "agreed": [7, 7, 7, 7, 7, 7, 12],
    }
    assert [int(x) for x in t] == counts[name]


def capturable(four: list[list[Tensor]], agree: Callable[[Tensor], None] | None = None) -> CapturableBucket:
    steps = [torch.zeros((), device=DEVICE) for _ in four[0]]
    return CapturableBucket(*four, steps, vars(Settings()), None, None, agree)


def test_a_failed_step_leaves_no_observation() -> None:
    def fails(observed: Tensor) -> None:
        raise RuntimeError("no agreement")

    four = cloned(columns([5]))
    bucket = capturable(four, fails)
    with pytest.raises(RuntimeError, match="no agreement"):
        backend.step_capturable([bucket])
    four[1][0].zero_()
    backend.step_capturable([bucket._replace(agree=None)])
    assert bucket.steps[0] == 0


def test_agree_gets_one_int32_a_tensor() -> None:
    seen = []
    four = cloned(columns([5, 40_000, 3]))
    four[1][2].zero_()
    bucket = capturable(four, lambda observed: seen.append(observed.clone()))
    for _ in range(2):  # in the second step the steps of the first two are no longer 0: no kernel looks
        backend.step_capturable([bucket])
    assert [x.tolist() for x in seen] == [[1, 1, 0], [0, 0, 0]]
    assert seen[0].dtype == torch.int32


def test_launches(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a bucket, three where the numbers are on the device; none of no elements."""
    launched = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(kernels, name)

        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            launched.append((self.name, grid[0]))
            return self.kernel[grid]

    for name in ("update", "observe", "update_capturable", "count"):
        monkeypatch.setattr(kernels, name, Recorded(name))
    s = step_scalars(vars(Settings()), 7)
    four = cloned(columns([5, 0, 40_000]))
    backend.step([Bucket(*four, s), Bucket(*([t[1]] for t in four), s)])
    assert launched == [("update", 1 + 0 + 3)]
    launched.clear()
    backend.step_capturable([capturable(four), capturable([[t[1]] for t in four])])
    assert launched == [("observe", 4), ("update_capturable", 4), ("count", 1), ("count", 1)]


# -- where it runs ----------------------------------------------------------------------------------------------------


def test_why_not_says_why(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.why_not(DEVICE, torch.bfloat16) is None
    assert "float32, torch.bfloat16" in str(backend.why_not(DEVICE, torch.complex64))
    assert "no meta tensors" in str(backend.why_not(torch.device("meta"), torch.float32))
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    assert "TRITON_INTERPRET=1" in str(backend.why_not(torch.device("cpu"), torch.float32))
    monkeypatch.setattr(kernels, "INTERPRETED", True)
    assert "TRITON_INTERPRET=1" in str(backend.why_not(torch.device("cuda"), torch.float32))
    monkeypatch.setattr(kernels, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert "7.5" in str(backend.why_not(torch.device("cuda"), torch.float32))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "ROCm" in str(backend.why_not(torch.device("cuda"), torch.float32))


def test_without_triton_or_with_an_old_one_the_reason_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    try:
        backend._kernels.cache_clear()
        monkeypatch.setattr("triton.__version__", "3.2.0")
        assert backend.why_not(cuda, torch.float32) == "the Triton kernel needs Triton 3.6 or later, this is 3.2.0"
        backend._kernels.cache_clear()
        monkeypatch.setitem(sys.modules, "triton", None)
        assert str(backend.why_not(cuda, torch.float32)).startswith("Triton cannot be imported (ModuleNotFoundError: ")
        with pytest.raises(RuntimeError, match="Triton cannot be imported"):
            backend.step([])
    finally:
        backend._kernels.cache_clear()


# -- what it is compiled to -------------------------------------------------------------------------------------------

CAPABILITIES = ("75", "80", "90", "100")
MIXES = ("fp32:fp32", "bf16:bf16", "bf16:fp32", "fp32:bf16", "fp16:fp16", "fp64:fp64")
CASES = [
    *(f"{capability}:{kernel}:fp32:fp32" for capability in CAPABILITIES for kernel in ("update", "update_capturable")),
    *(f"{capability}:update:bf16:bf16" for capability in CAPABILITIES if capability != "90"),
    *(f"90:update:{mix}" for mix in MIXES[1:]),
    "90:update_capturable:bf16:bf16:bare",
    "90:update:fp32:fp32:bare",
    *(f"{capability}:{kernel}:fp32:fp32" for capability in ("80", "90") for kernel in ("observe", "count")),
    "90:count:fp32:fp32:bare",
]


def compile_kernels(source: Path, folder: Path, *cases: str, triton: Path | None = None) -> dict[str, Any]:
    """Compiled in another process, where Triton does not interpret; see `sass.py`.

    Args:
        triton: The folder of another Triton than the installed one.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder)
    if triton is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(triton), str(Path(__file__).parents[3])])
    script = str(Path(__file__).with_name("sass.py"))
    done = subprocess.run(
        [sys.executable, script, str(source), *cases], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compile_kernels(KERNELS, tmp_path_factory.mktemp("triton"), *CASES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiled_kernels_stay_in_registers(machine_code: dict[str, Any], case: str) -> None:
    """No stack, no spills, and no exchange between threads, whose barriers would hold up the loads."""
    code = machine_code[case]
    assert (code["usage"]["stack"], code["usage"]["local"]) == (0, 0)
    if "observe" not in case:  # which has a sum over its threads
        forbidden = ("LDL", "STL", "LDS", "STS", "BAR")
        assert [name for name in code["sass"] if name.startswith(forbidden)] == []


def transfers(code: dict[str, Any], bytes_each: str) -> tuple[int, int]:
    """Loads and stores of global memory of that size."""
    return tuple(code["sass"].get(f"{name}.E{bytes_each}", 0) for name in ("LDG", "STG"))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["update", "update_capturable"])
def test_full_blocks_are_moved_16_bytes_at_a_time(machine_code: dict[str, Any], kernels: Any, kernel: str) -> None:
    """Of each tensor as many elements a thread as a block has; four float32 numbers are 16 bytes."""
    each = kernels.BLOCK.value // (32 * kernels.WARPS) // 4
    assert transfers(machine_code[f"90:{kernel}:fp32:fp32"], ".128") == (4 * each, 3 * each)


@pytest.mark.slow
@pytest.mark.parametrize(("mix", "halves"), [("bf16:bf16", (2, 1)), ("bf16:fp32", (1, 1)), ("fp32:bf16", (1, 0))])
def test_16_bit_numbers_are_moved_8_bytes_at_a_time(
    machine_code: dict[str, Any], kernels: Any, mix: str, halves: tuple[int, int]
) -> None:
    each = kernels.BLOCK.value // (32 * kernels.WARPS) // 4
    code, whole = machine_code[f"90:update:{mix}"], machine_code["90:update:fp32:fp32"]
    assert transfers(code, ".128") == ((4 - halves[0]) * each, (3 - halves[1]) * each)
    addresses = transfers(whole, ".64")[0]  # those in the table
    assert transfers(code, ".64") == (addresses + halves[0] * each, halves[1] * each)


@pytest.mark.parametrize(
    "change",
    [
        ("tl.multiple_of(p, 8 if p_type.primitive_bitwidth == 16 else 16)", "p"),
        ("offset + tl.arange(0, BLOCK), None,", "offset + tl.arange(0, BLOCK), offset + tl.arange(0, BLOCK) < count,"),
    ],
    ids=["without the hint", "with a mask"],
)
def test_the_count_of_16_byte_moves_can_fail(tmp_path: Path, kernels: Any, change: tuple[str, str]) -> None:
    source = KERNELS.read_text()
    assert source.count(change[0]) == 1
    changed = tmp_path / "kernels.py"
    changed.write_text(source.replace(*change))
    code = compile_kernels(changed, tmp_path, "90:update:fp32:fp32")["90:update:fp32:fp32"]
    each = kernels.BLOCK.value // (32 * kernels.WARPS) // 4
    assert transfers(code, ".128")[0] <= 3 * each


@pytest.mark.slow
def test_results_are_those_of_the_definition_operation_by_operation(machine_code: dict[str, Any]) -> None:
    """Correct roots and quotients, nothing fused, no subnormal number taken for zero, no bound that replaces NaN."""
    for case in ("90:update:fp32:fp32", "80:update:fp32:fp32", "90:update:bf16:bf16"):
        ptx = machine_code[case]["ptx"]
        assert ptx["sqrt.rn.f32"] == ptx["div.rn.f32"] > 0
        assert [name for name in ptx if re.search(r"fma|ftz|approx|(min|max)[.]f", name)] == []


FOLDERS = os.environ.get("TRITON_FOLDERS")  # a folder of folders, each named by the Triton that is installed there
TRITONS = [pytest.param(path, id=path.name) for path in sorted(Path(FOLDERS).iterdir())] if FOLDERS else []
all_versions = pytest.mark.parametrize(
    "triton",
    TRITONS or [pytest.param(None, marks=pytest.mark.skip(reason="TRITON_FOLDERS is not set: make test-tritons"))],
)


def assert_as_defined(code: dict[str, Any]) -> None:
    """Correct roots and quotients, nothing fused, no subnormal number taken for zero, no bound that replaces NaN."""
    assert min(code["ptx"]["sqrt.rn.f32"], code["ptx"]["div.rn.f32"]) > 0
    assert [name for name in code["ptx"] if re.search(r"fma|ftz|approx|(min|max)[.]f", name)] == []


@all_versions
def test_all_versions_of_triton_compile_the_definition(triton: Path, tmp_path: Path) -> None:
    """And take what is loaded and stored together; see `OLDEST`."""
    cases = [f"{capability}:update:{mix}" for capability in ("80", "90") for mix in ("fp32:fp32", "bf16:bf16")]
    found = compile_kernels(KERNELS, tmp_path, *cases, "90:update_capturable:fp32:fp32", triton=triton)
    for case, code in found.items():
        assert code["triton"] == triton.name
        assert (code["usage"]["stack"], code["usage"]["local"]) == (0, 0)
        if "capturable" not in case:  # whose logarithm has them
            assert_as_defined(code)
    assert transfers(found["90:update:fp32:fp32"], ".128") == (8, 6)


@pytest.mark.slow
def test_no_number_is_compiled_in(machine_code: dict[str, Any]) -> None:
    """A scheduler changes lr, and the clip every step: only types and switches may make another kernel."""
    assert machine_code["90:update:fp32:fp32"]["constants"] == ["coupled", "g_type", "m_type", "p_type"]
    assert machine_code["90:update_capturable:fp32:fp32"]["constants"] == [
        "clipped",
        "coupled",
        "g_type",
        "m_type",
        "p_type",
    ]


@pytest.mark.slow
def test_bfloat16_is_stored_to_nearest(machine_code: dict[str, Any]) -> None:
    """The interpreter cannot show it."""
    for capability in ("80", "90", "100"):
        ptx = machine_code[f"{capability}:update:bf16:bf16"]["ptx"]
        to_bfloat16 = {name for name in ptx if name.startswith("cvt.rn.bf16")}
        assert to_bfloat16
        assert {name for name in ptx if name.startswith("cvt") and "bf16" in name} == {*to_bfloat16, "cvt.f32.bf16"}


# -- in the optimizer, and on a GPU ------------------------------------------------------------------------------------

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
SHAPES = [(), (7,), (300, 40), (40_000,)]


def model() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(DEVICE)) for shape in SHAPES]


def loss(params: list[torch.nn.Parameter], x: Tensor) -> Tensor:
    """Of other gradients for another x; that of the second parameter is all zero below x = 3."""
    terms = [((p - x.cos()) ** 2).mean() for p in params]
    terms[1] = terms[1] * (x >= 3)
    return torch.stack(terms).sum()


def adopt(params: list[torch.nn.Parameter], name: str) -> ADOPT:
    lr = torch.tensor(0.05, device=DEVICE)
    return ADOPT(params, lr=lr, weight_decay=0.1, decouple=True, capturable=True, backend=name)


def trained(optimizer: ADOPT) -> list[list[Tensor]]:
    params = optimizer.param_groups[0]["params"]
    state = [optimizer.state[p] for p in params]
    return [[p.detach() for p in params], *([s[name] for s in state] for name in ("exp_avg", "exp_avg_sq", "step"))]


def step(optimizer: ADOPT, x: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss(optimizer.param_groups[0]["params"], x).backward()
    optimizer.step()


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_grad_scaler_whose_first_step_overflows(unscaled: bool) -> None:
    def training(name: str) -> list[list[Tensor]]:
        optimizer = adopt(model(), name)
        params = optimizer.param_groups[0]["params"]
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10, growth_interval=2)
        for i in range(7):
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss(params, torch.tensor(float(i), device=DEVICE))).backward()
            if i in (0, 4):
                params[2].grad[3] = math.inf
            if unscaled:  # as the Trainer does before it clips
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return trained(optimizer)

    got = training("fused")
    assert [int(t) for t in got[-1]] == [5, 3, 5, 5]
    assert_same(got, training("reference"))


@gpu
@needs_gpu
def test_a_captured_step_replays_as_eager_steps() -> None:
    """With gradients allocated in the capture, and with eager steps between replays, which use other gradients."""
    optimizers = adopt(model(), "fused"), adopt(model(), "reference")
    captured, eager = optimizers
    x = torch.zeros((), device=DEVICE)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(2):
            x.fill_(i)
            step(captured, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, x)
    for i in range(2, 9):
        x.fill_(i)
        captured.param_groups[0]["lr"].mul_(0.9)
        if i in (4, 7):
            step(captured, x)
        else:
            graph.replay()
    x = torch.zeros((), device=DEVICE)
    for i in range(9):
        x.fill_(i)
        if i >= 2:
            eager.param_groups[0]["lr"].mul_(0.9)
        step(eager, x)
    assert_same(trained(captured), trained(eager))


@gpu
@needs_gpu
@pytest.mark.parametrize("capturable", [False, True])
def test_steps_neither_wait_nor_allocate(capturable: bool) -> None:
    params = model()
    gradients = [[torch.randn_like(p) for p in params] for _ in range(3)]
    optimizer = ADOPT(params, weight_decay=0.1, capturable=capturable, backend="fused")

    def steps(n: int) -> None:
        for i in range(n):
            for p, grad in zip(params, gradients[i % 3], strict=True):
                p.grad = grad
            optimizer.step()

    steps(6)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() == before


@gpu
@needs_gpu
def test_addresses_wait_for_their_turn_in_pinned_memory() -> None:
    """The host runs ahead by many steps, each with other gradients, while the device is busy with something else."""
    four = columns([40_000, 7])
    got, wanted = cloned(four), cloned(four)
    fresh = [columns([40_000, 7], seed=seed)[1] for seed in range(20)]
    gradients = [cloned([column])[0] for column in fresh]
    s, memory = step_scalars(vars(Settings()), 7), Memory()
    backend.step([Bucket(*got, s, memory)])  # compiles
    torch.cuda.synchronize()
    busy = torch.randn(4096, 4096, device=DEVICE)
    for _ in range(30):
        busy = busy @ busy * 1e-4
    for column in gradients:
        got[1] = column
        memory.grad_addresses = list(map(Tensor.data_ptr, column))
        backend.step([Bucket(*got, s, memory)])
    for column in [wanted[1], *gradients]:
        wanted[1] = column
        reference.step([Bucket(*wanted, s)])
    assert_same(got, wanted)


@gpu
@needs_gpu
def test_a_table_is_used_on_one_stream(built: list[backend.Table]) -> None:
    both = Pair()
    both.step()
    both.step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both.step()
    assert len({table.stream for table in built}) == len(built) == 2


@gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_of_another_than_the_current_gpu() -> None:
    four = columns([40_000, 7])
    got, wanted = ([[t.to("cuda:1", copy=True) for t in column] for column in four] for _ in range(2))
    s = step_scalars(vars(Settings()), 7)
    backend.step([Bucket(*got, s)])
    reference.step([Bucket(*wanted, s)])
    assert_same(got, wanted)
