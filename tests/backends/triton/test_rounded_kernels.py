"""The Triton kernel whose results are rounded equals the definition, `reference.step_rounded`, bit for bit:

- in every form, block size, dtype and setting; blocks of all lengths, aligned or not, in one launch; all codes;
- NaN and inf, and places beyond 2**32, are as there;
- new keys are copied each step, and nothing else;
- for GPUs it is compiled to few registers and to wide loads and stores, with the definition's operations.

Without a GPU it runs in Triton's interpreter, and is compiled for GPUs in another process; see `test_triton.py`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adopt_hf import ADOPT, backends
from adopt_hf.algorithm import step_scalars, update
from adopt_hf.backends import reference
from adopt_hf.backends.bucket import Memory, RoundedBucket
from adopt_hf.backends.triton import launch as backend
from adopt_hf.hyperparameters import BLOCK_SIZES
from adopt_hf.state import quantization
from adopt_hf.state.formats import Format
from adopt_hf.state.rounding import GOLDEN, WORD, _mixed, to_bfloat16
from experiments.gpu import interpreter  # noqa: F401
from tests.backends.triton.test_kernels import all_versions, assert_as_defined, compile_kernels, placed, transfers
from tests.oracle import Settings
from tests.support.tensors import same_bits

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")  # numpy's, of inf and NaN

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SOURCE = Path(backend.__file__).with_name("rounded_kernels.py")
Step = Callable[[list[RoundedBucket]], None]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the kernels; the root of the definition is rounded correctly."""
    reason = backend.why_not(DEVICE, torch.float32)
    if reason is not None:
        pytest.skip(reason)

    def root(t: Tensor) -> Tensor:  # that of MKL, which torch uses on the CPU, is off in the last place now and then
        return t.double().pow(0.5).float() if t.is_cuda else torch.tensor([math.sqrt(x) for x in t.tolist()])

    monkeypatch.setattr(Tensor, "sqrt", lambda t: root(t.flatten()).view(t.shape))
    from adopt_hf.backends.triton import rounded_kernels

    return rounded_kernels


@dataclass
class Case:
    """Tensors in mid-training, of which some elements have not been observed, and some steps that they go through."""

    format: Format
    dtype: torch.dtype = torch.bfloat16
    grad_dtype: torch.dtype = torch.bfloat16
    settings: Settings = field(default_factory=Settings)
    shapes: tuple[tuple[int, ...], ...] = ((3, 100), (700,), (0,), (2, 3, 77), (20, 7), (2, 256), ())
    offsets: tuple[int, ...] = (0, 0, 0, 0)  # elements from an aligned address, of theta, g, m and v
    steps: int = 2
    t: int = 4
    odd: tuple[float, ...] = ()  # put among the gradients of the second step

    def run(self, step: Step, first_key: int = 5) -> list[list[Tensor]]:
        """theta, m, v and scales at the end; fails if memory beside them was written."""
        torch.manual_seed(0)
        bits, block_size, _ = self.format
        params = [torch.randn(shape).to(self.dtype) for shape in self.shapes]
        moments = [(torch.randn(s), torch.rand(s) * torch.randn(s).mul(5).exp2()) for s in self.shapes]
        moments = [(m, v * (torch.rand(v.shape) > 0.2)) for m, v in moments]
        scales: list[Tensor] = []
        if bits == 8:
            codes = [quantization.quantize(m, v, block_size, key) for key, (m, v) in enumerate(moments)]
            ms, vs, scales = ([t.to(DEVICE) for t in column] for column in zip(*codes, strict=True))
        else:
            ms, vs = ([t.to({16: torch.bfloat16}.get(bits)) for t in column] for column in zip(*moments, strict=True))
        memory, columns = [], []
        for column, offset in zip((params, params, ms, vs), self.offsets, strict=True):
            column = [t.to(self.grad_dtype) for t in column] if len(columns) == 1 else column
            there = [placed(t.flatten(), offset) for t in column]
            memory += [(t, whole, offset) for t, whole in there]
            columns.append([t.view(shape) for (t, _), shape in zip(there, self.shapes, strict=True)])
        p, g, m, v = columns
        shared = Memory()
        for t in range(self.t, self.t + self.steps):
            for grad in g:
                grad.copy_(torch.randn(grad.shape) * torch.randn(grad.shape).mul(3).exp2())
                if t < self.t + 2 and grad.numel() > 1:
                    grad.view(-1)[::3] = 0
                if t == self.t + 1 and grad.numel() > 99:
                    for place in (50, grad.numel() - len(self.odd)):
                        grad.view(-1)[place : place + len(self.odd)] = torch.tensor(self.odd)
            keys = [(first_key + 2**31 * i + 77_777_777 * t) & WORD for i in range(len(p))]
            s = step_scalars(vars(self.settings), t)
            step([RoundedBucket(p, g, m, v, scales, keys, self.format, s, shared)])
            shared.grad_addresses = [x.data_ptr() for x in g]
        for t, whole, offset in memory:
            assert whole[:offset].eq(7).all()
            assert whole[offset + t.numel() :].eq(7).all()
        return [p, m, v, scales]


def assert_same(got: list[list[Tensor]], wanted: list[list[Tensor]]) -> None:
    for name, column, expected in zip(("theta", "m", "v", "scales"), got, wanted, strict=True):
        for a, b in zip(column, expected, strict=True):
            assert same_bits(a, b), f"{name} of shape {tuple(a.shape)}: {(a != b).sum()} differ"


HALF, SINGLE = torch.float16, torch.float32
CASES = {
    **{f"8 bits, blocks of {n}": Case(Format(8, n, True)) for n in BLOCK_SIZES},
    "16 bits": Case(Format(16, 256, True)),
    "32 bits": Case(Format(32, 256, True)),
    "8 bits, float32": Case(Format(8, 64, False), SINGLE, SINGLE, Settings(weight_decay=0.1)),
    "8 bits, float16": Case(Format(8, 64, False), HALF, HALF, Settings(weight_decay=0.1, decouple=True)),
    "8 bits, bfloat16 to nearest": Case(Format(8, 64, False), settings=Settings(betas=(0.3, 0.9), clip_exp=None)),
    "8 bits, mixed": Case(Format(8, 64, True), grad_dtype=SINGLE, settings=Settings(eps=0.1, maximize=True)),
    "8 bits, float32 with float16 gradients": Case(Format(8, 64, False), SINGLE, HALF),
    "16 bits, float32": Case(Format(16, 64, False), SINGLE, SINGLE, Settings(weight_decay=0.1)),
    "16 bits, float16": Case(Format(16, 64, False), HALF, HALF),
    "8 bits from the first step": Case(Format(8, 64, True), t=0, settings=Settings(beta2_warmup=0.8)),
    "8 bits, not aligned": Case(Format(8, 64, True), offsets=(1, 2, 3, 5)),
    "8 bits, codes not aligned": Case(Format(8, 256, True), offsets=(0, 0, 0, 1)),
    "16 bits, not aligned": Case(Format(16, 64, True), offsets=(1, 2, 3, 5)),
    "8 bits, several chunks": Case(Format(8, 256, True), shapes=((9, 1000), (3, 300)), steps=1),
    "16 bits, several chunks": Case(Format(16, 256, True), shapes=((9, 1001), (7,))),
    "8 bits, odd numbers": Case(Format(8, 64, True), odd=(math.inf, math.nan, -math.inf, 3e38, 1e-30), steps=3),
    "16 bits, v just above zero": Case(Format(16, 64, True), odd=(1e-21,) * 40),
    "8 bits, v becomes 0": Case(Format(8, 64, True), settings=Settings(betas=(0.9, 0.0)), odd=(1e-30,) * 40),
    "16 bits, v becomes 0": Case(Format(16, 64, True), settings=Settings(betas=(0.9, 0.0)), odd=(1e-30,) * 40),
    "32 bits, v becomes 0": Case(Format(32, 64, True), settings=Settings(betas=(0.9, 0.0), eps=1e-40)),
    "16 bits, odd numbers": Case(Format(16, 64, True), odd=(math.inf, math.nan, -math.inf, 3e38, 1e-30), steps=3),
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_the_definitions_to_the_bit(name: str) -> None:
    assert_same(CASES[name].run(backend.step_rounded), CASES[name].run(reference.step_rounded))


@pytest.mark.parametrize("name", ["8 bits, blocks of 64", "16 bits", "32 bits", "8 bits, float32"])
def test_the_comparison_sees_other_random_bits(name: str) -> None:
    with pytest.raises(AssertionError, match="differ"):
        assert_same(CASES[name].run(reference.step_rounded, first_key=6), CASES[name].run(reference.step_rounded))


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_all_codes_are_read_as_they_are(bits: int) -> None:
    """Blocks of one code of v, and all of m, and the other way round; with the bits and scales that codes may have."""
    codes = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    m = torch.cat([codes.expand(32, 256), codes[bits::8, None].expand(32, 256)])
    v = torch.cat([codes[bits::8, None].expand(32, 256), codes.expand(32, 256)])
    scales = torch.tensor([3e-5, 2.0**-90 * 1.3, float(bits)], device=DEVICE).repeat(64, 1, 1)
    results = []
    for step in (backend.step_rounded, reference.step_rounded):
        four = [t.clone().contiguous() for t in (m, v, scales)]
        p, g = torch.ones(64, 256, device=DEVICE), torch.full((64, 256), 1e-13, device=DEVICE)
        s = step_scalars(vars(Settings(eps=1e-20, clip_exp=None)), 3)
        step([RoundedBucket([p], [g], [four[0]], [four[1]], [four[2]], [9], Format(8, 256, False), s)])
        results.append([p, *four])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_places_beyond_2_to_the_32(kernels: Any) -> None:
    """The last chunk of such a tensor: its elements are where their addresses say, and so are their random bits.

    Of the tensor only these elements exist.
    """
    n, beyond, key = 300, 3 * 2**31, 0xFEDCBA98
    before = beyond // kernels.CHUNK.value
    four = [torch.randn(n, device=DEVICE).bfloat16() for _ in range(2)]
    four += [torch.randn(n, device=DEVICE), torch.rand(n, device=DEVICE)]
    s = step_scalars(vars(Settings()), 7)
    theta, _, _ = update(*four, s)
    first = _mixed((beyond + torch.arange(n, device=DEVICE)) & WORD ^ key)
    wanted = to_bfloat16(theta, _mixed(first + GOLDEN & WORD))
    addresses = [(t.data_ptr() - beyond * t.element_size(),) for t in four]
    blocks = backend.Blocks(kernels.UNBLOCKED, kernels.CHUNK.value // kernels.UNBLOCKED, (beyond + n,))
    table, _ = backend._new((beyond + n,), [*addresses, (0,), (key,)], DEVICE, 0, blocks)
    assert table.programs == before + 1
    table.rows[7] = -before  # as if the first program came after those of the elements that do not exist
    types = [backend._loaded().TYPES[t.dtype] for t in four[:2]]
    kernels.update_rounded[(1,)](
        *(table.rows, table.chunks, 1, *backend._numbers(s), *types),
        *(False, 32, kernels.UNBLOCKED, True),
        **kernels.options(kernels.UNBLOCKED),
    )
    assert same_bits(four[0], wanted)


def test_a_table_is_built_once_and_keys_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, new = [], backend._new
    monkeypatch.setattr(backend, "_new", lambda *args: tables.append(new(*args)) or tables[-1])
    Case(Format(8, 64, True), shapes=((3, 100), (70,)), steps=3).run(backend.step_rounded)
    assert len(tables) == 1
    assert tables[0][0].rows._version == 2  # keys, twice
    Case(Format(8, 128, True), shapes=((3, 100), (70,)), steps=1).run(backend.step_rounded)
    assert len(tables) == 2


def zero_moments(shape: torch.Size, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    m, v = (torch.zeros(shape, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    return m, v, quantization.new_scales(shape, block_size, torch.device(DEVICE))


def test_a_tensor_of_another_shape_in_the_same_place_is_cut_anew() -> None:
    results = []
    for step in (backend.step_rounded, reference.step_rounded):
        torch.manual_seed(0)
        p, g = torch.randn(4, 150, device=DEVICE), torch.randn(4, 150, device=DEVICE)
        s = step_scalars(vars(Settings()), 3)
        for shape in ((4, 150), (6, 100)):
            m, v, scales = zero_moments(torch.Size(shape), 64)
            four = [t.view(shape) for t in (p, g, m, v)]
            for key in range(2):
                step([RoundedBucket(*([t] for t in four), [scales], [key], Format(8, 64, False), s)])
        results.append([p, m, v, scales])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_one_launch_a_bucket_and_autograd_is_told_of_parameters(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    launched, kernel = [], kernels.update_rounded

    class Recorded:
        def __getitem__(self, grid: tuple[int]) -> Any:
            launched.append(grid[0])
            return kernel[grid]

    monkeypatch.setattr(kernels, "update_rounded", Recorded())
    p, g = torch.zeros(2, 4100, device=DEVICE), torch.ones(2, 4100, device=DEVICE)
    moments = zero_moments(p.shape, 256)
    versions = [t._version for t in (p, g, *moments)]
    empty = torch.zeros(0, device=DEVICE)
    of_empty = zero_moments(empty.shape, 256)
    lists = zip((p, g, *moments), (empty, empty, *of_empty), strict=True)
    s = step_scalars(vars(Settings()), 3)
    nothing = RoundedBucket([empty], [empty], *([t] for t in of_empty), [4], Format(8, 256, False), s)
    backend.step_rounded([RoundedBucket(*map(list, lists), [1, 2], Format(8, 256, False), s), nothing])
    assert launched == [2]  # of 34 blocks, 32 a program
    assert [t._version > before for t, before in zip((p, g, *moments), versions, strict=True)] == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("options", [{"state_bits": 8}, {"state_bits": 16, "bf16_stochastic_round": True}], ids=str)
def test_in_the_optimizer(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts as parameters and gradients may have; a late gradient; small tensors, whose moments are float32."""
    monkeypatch.setitem(backends.TABLE, "fused", (backends.TRITON,))
    results = []
    for name in ("fused", "reference"):
        torch.manual_seed(0)
        params = [torch.randn(40, 130), torch.randn(130, 40).t(), torch.randn(4200)[::1], torch.randn(7)]
        params = [nn.Parameter(p.to(DEVICE, torch.bfloat16)) for p in params]
        optimizer = ADOPT(params, lr=0.01, weight_decay=0.1, backend=name, **options)
        for i in range(2):
            for p in params:
                p.grad = torch.randn(p.shape).to(DEVICE, torch.bfloat16) * (i > 0 or p is not params[2])
            optimizer.step()
        state = [optimizer.state[p] for p in params]
        results.append([*params, *(t for s in state for t in s.values() if isinstance(t, Tensor))])
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


# -- what it is compiled to -------------------------------------------------------------------------------------------


def case(capability: str, mix: str, bits: int, block_size: int, round_param: bool) -> str:
    return f"{capability}:update_rounded:{mix}:bits={bits}:block_size={block_size}:round_param={round_param:d}"


UNBLOCKED = 256
SMALL = case("90", "bf16:bf16", 8, 256, True)
COMPILED = [
    *(case("90", "bf16:bf16", 8, n, True) for n in (64, 256, 2048)),
    *(case("90", "fp32:fp32", 8, n, False) for n in (256, 2048)),
    case("90", "fp16:fp16", 8, 256, False),
    *(case("90", "bf16:bf16", bits, UNBLOCKED, True) for bits in (16, 32)),
    *(case(capability, "bf16:bf16", 8, 256, True) for capability in ("75", "80", "100")),
]


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compile_kernels(SOURCE, tmp_path_factory.mktemp("triton"), *COMPILED)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_kernels_stay_in_registers(machine_code: dict[str, Any], name: str) -> None:
    """So few that a multiprocessor has room for five warps a scheduler, or four of large blocks."""
    code = machine_code[name]
    assert code["usage"]["reg"] <= (128 if "=2048" in name else 96)
    if name.startswith("100:"):  # which keeps a few addresses of the unaligned path on the stack
        assert code["usage"]["stack"] <= 64
    else:
        assert code["usage"]["stack"] == 0
        assert [op for op in code["sass"] if op.startswith(("LDL", "STL"))] == []


@pytest.mark.slow
def test_four_elements_are_moved_at_a_time(machine_code: dict[str, Any]) -> None:
    """Eight a thread: of codes in 4 bytes, of bfloat16 in 8, of float32 in 16; where addresses are odd, one by one."""
    whole = machine_code[case("90", "fp32:fp32", 8, 256, False)]
    assert transfers(whole, ".128") == (4, 2)  # theta and g; theta
    addresses = transfers(whole, ".64")[0]  # in the table
    assert transfers(machine_code[SMALL], ".64") == (addresses + 4, 2)
    assert transfers(machine_code[SMALL], ".U16") == (16, 8)
    assert transfers(machine_code[SMALL], ".U8") == (16, 16)
    halves = machine_code[case("90", "bf16:bf16", 16, UNBLOCKED, True)]
    assert transfers(halves, ".64")[1] == 6
    assert transfers(halves, ".U16") == (32, 24)


@pytest.mark.slow
def test_a_block_of_one_warp_is_reduced_by_single_instructions(machine_code: dict[str, Any]) -> None:
    """Two paths, each with the largest m and v, and the smallest v."""
    sass = machine_code[SMALL]["sass"]
    assert sum(n for op, n in sass.items() if op.startswith("REDUX")) == 6
    assert [op for op in sass if op.startswith("SHFL")] == []


@pytest.mark.slow
def test_results_are_those_of_the_definition_operation_by_operation(machine_code: dict[str, Any]) -> None:
    """Correct roots and quotients, nothing fused, no subnormal number taken for zero, no bound that replaces NaN."""
    for name in COMPILED:
        ptx = machine_code[name]["ptx"]
        assert ptx["sqrt.rn.f32"] > 0
        assert ptx["div.rn.f32"] > 0
        assert [op for op in ptx if re.search(r"fma|ftz|approx|(min|max)[.]f", op)] == []


@all_versions
def test_all_versions_of_triton_compile_the_definition(triton: Path, tmp_path: Path) -> None:
    found = compile_kernels(SOURCE, tmp_path, SMALL, triton=triton)[SMALL]
    assert found["triton"] == triton.name
    assert_as_defined(found)
    assert transfers(found, ".U8") == (16, 16)


@pytest.mark.slow
def test_no_number_is_compiled_in(machine_code: dict[str, Any]) -> None:
    """But for the format, which does not change."""
    names = ["bits", "block_size", "coupled", "g_type", "p_type", "round_param"]
    assert machine_code[SMALL]["constants"] == names


@pytest.mark.slow
def test_without_the_promise_of_alignment_elements_are_moved_one_by_one(
    machine_code: dict[str, Any], tmp_path: Path
) -> None:
    """So that the counts above can fail."""
    source = SOURCE.read_text()
    assert source.count("round_param, 4,") == 1
    changed = tmp_path / "kernels.py"
    changed.write_text(source.replace("round_param, 4,", "round_param, 1,"))
    name = case("90", "bf16:bf16", 32, UNBLOCKED, True)
    assert transfers(compile_kernels(changed, tmp_path, name)[name], ".U16") == (2 * 16, 2 * 8)
    assert transfers(machine_code[name], ".U16") == (16, 8)
