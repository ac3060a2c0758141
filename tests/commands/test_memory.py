"""`python -m adopt_hf memory`: the bytes of optimizer state.

- exact bytes from shapes are those derived by hand (table), and those of an ADOPT in one process;
- the bytes of a mere number of parameters miss no more than is said (property);
- a number is read in every spelling, and whatever else is written raises one line (property);
- the command prints the figures, and refuses what there is not with one line and exit code 2 (table).

Bytes measured under DDP, FSDP and DeepSpeed: tests/processes/test_memory.py.
"""

import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adopt_hf import ADOPT, param_groups, traffic
from adopt_hf.commands import main
from adopt_hf.commands import memory as memory_command
from adopt_hf.memory import MODES, PRECISIONS, Usage, state_bytes
from adopt_hf.memory_models import MODELS, nearest
from adopt_hf.state import formats
from tests.support.processes import WITHOUT_TRANSFORMERS, python

GROUPS = [[(5, 3), (4,)], [(7,)]]  # 19 and 7 elements

# -- bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "world_size", "elements"),
    [
        ("ddp", 3, 26),
        ("zero0", 3, 26),
        ("zero1", 1, 20 + 8),  # padded to multiples of 2
        ("zero1", 2, 20 // 2 + 8 // 2),  # ... of 4
        ("zero2", 3, 24 // 3 + 12 // 3),  # ... of 6
        ("zero3", 1, 26),
        ("zero3", 2, 8 + 2 + 4),
        ("zero3", 3, 5 + 2 + 3),
        ("zero3", 100, 3),
        ("fsdp", 1, 26),
        ("fsdp", 2, 3 * 3 + 2 + 4),
        ("fsdp", 3, 2 * 3 + 2 + 3),
        ("fsdp", 100, 3 + 1 + 1),
    ],
)
def test_shapes(mode: str, world_size: int, elements: int) -> None:
    assert state_bytes(GROUPS, mode=mode, world_size=world_size).moments == 8 * elements


@pytest.mark.parametrize("precision", PRECISIONS)
def test_master_weights(precision: str) -> None:
    """DeepSpeed copies the weights, except float32 weights that it does not shard; torch does not."""
    having = {mode for mode in MODES if state_bytes(100, mode=mode, precision=precision).master}
    assert having == {"zero1", "zero2", "zero3"} | ({"zero0"} if precision != "fp32" else set())
    for mode in having:
        assert state_bytes(100, mode=mode, precision=precision).master == 400


def test_offloaded() -> None:
    here = state_bytes(7e9, mode="zero3", world_size=64)
    there = state_bytes(7e9, mode="zero3", world_size=64, offload="parameters")
    assert here == Usage(moments=8 * 109_375_000, master=4 * 109_375_000, offloaded=False)
    assert (here.gpu, here.cpu, here.held_by) == (1_312_500_000, 0, "GPU")
    assert (there.gpu, there.cpu, there.held_by) == (0, 1_312_500_000, "CPU")


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_fewer_bits_in_one_process(bits: int) -> None:
    """Those of a real optimizer, for a tensor that has neither an embedding's nor a small one's exception."""
    p = nn.Parameter(torch.zeros(300, 768))
    optimizer = ADOPT([p], state_bits=bits, block_size=256)
    p.grad = torch.ones_like(p)
    optimizer.step()
    held = sum(t.untyped_storage().nbytes() for name, t in optimizer.state[p].items() if name != "step")
    assert held == state_bytes([[p.shape]], state_bits=bits, float32=[[]]).moments
    assert held == 3 * state_bytes([[p.shape]], mode="zero3", world_size=3, state_bits=bits, float32=[[]]).moments


@pytest.mark.parametrize("mode", ["ddp", "zero0"])
def test_8_bits_from_shapes_in_one_process(mode: str) -> None:
    """Those of a real optimizer: an embedding, small tensors, rows that end with a short block, and one flat tensor."""
    model = nn.Sequential(nn.Embedding(90, 64), nn.Linear(64, 70), nn.Linear(70, 300), nn.Conv1d(5, 41, 20))
    optimizer = ADOPT(param_groups(model, weight_decay=0.1), state_bits=8)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
    shapes = [[p.shape for p in group["params"]] for group in optimizer.param_groups]
    float32 = [group.get("float32_state", ()) for group in optimizer.param_groups]
    assert float32 == [[0], ()]
    assert {t.dtype for t in held} == {torch.float32, torch.uint8}
    expected = state_bytes(shapes, mode=mode, precision="fp32", state_bits=8, float32=float32)
    assert sum(t.untyped_storage().nbytes() for t in held) == expected.total


def test_8_bits_sharded_by_hand() -> None:
    groups, float32 = [[(300, 256), (90, 64), (512, 100)], [(3,)]], [[1], []]
    flat = 300 * 256 + 512 * 100
    fsdp = state_bytes(groups, mode="fsdp", world_size=2, state_bits=8, float32=float32)  # rows of 100 are too short
    assert fsdp.moments == 8 * (45 * 64 + 2 + 256 * 100) + 2 * (150 * 256) + 12 * 150
    zero = state_bytes(groups, mode="zero2", world_size=4, state_bits=8, float32=float32)
    assert zero.moments == 8 * (90 * 64 // 4 + 2) + 2 * flat // 4 + 12 * 125  # 32,000 elements in blocks of 256
    assert zero.master == 4 * ((flat + 90 * 64) // 4 + 2)


def test_8_bits_of_shapes_need_the_embeddings() -> None:
    with pytest.raises(ValueError, match="needs the positions of the embeddings, a list for each param group: write"):
        state_bytes(GROUPS, state_bits=8)
    with pytest.raises(ValueError, match="needs the positions of the embeddings"):
        state_bytes(GROUPS, state_bits=8, float32=[[0]])
    with pytest.raises(ValueError, match="state_bits must be one of 8, 16, 32, got 5"):
        state_bytes(100, state_bits=5)
    assert state_bytes(GROUPS, state_bits=16).moments == 4 * 26


OF_TRANSFORMERS = {
    "gpt2": ("GPT2LMHeadModel", {"n_layer": 12, "n_embd": 768, "n_head": 12}),
    "gpt2-xl": ("GPT2LMHeadModel", {"n_layer": 48, "n_embd": 1600, "n_head": 25}),
    "llama-7b": ("LlamaForCausalLM", {}),
    "llama-3-8b": (
        "LlamaForCausalLM",
        {"intermediate_size": 14336, "vocab_size": 128256, "num_key_value_heads": 8},
    ),
}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_known_models_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    title, settings = OF_TRANSFORMERS[name]
    cls = getattr(transformers, title)
    with torch.device("meta"):
        model = cls(cls.config_class(**settings))
    groups = param_groups(model, 0.1)
    known = MODELS[name]
    for group, shapes, positions in zip(groups, known.groups, known.embeddings, strict=True):
        marked = [getattr(p, formats.MARK, False) for p in group["params"]]
        found = sorted(zip(map(tuple, (p.shape for p in group["params"])), marked, strict=True))
        assert found == sorted((shape, position in positions) for position, shape in enumerate(shapes))


def test_bytes_of_known_models() -> None:
    """The figures of README and docs/low_bits.md."""
    each = {name: state_bytes(model, state_bits=8).moments / model.elements for name, model in MODELS.items()}
    assert each["gpt2"] == pytest.approx(3.94, abs=0.01)
    assert each["llama-7b"] == pytest.approx(2.16, abs=0.01)
    assert all(2.04 < found < 4 for found in each.values())
    # of a mere number, which is taken for that of the nearest model
    assert state_bytes(124e6, state_bits=8).moments == pytest.approx(489e6, rel=0.002)
    assert nearest(1).title == "GPT-2 124M"
    assert nearest(8 * 10**9).title == "Llama 3 8B"
    assert nearest(10**12).title == "Llama 2 70B"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_one_process(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3, bias=False)).to(dtype)
    optimizer = ADOPT(param_groups(model, weight_decay=0.1))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    held = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    shapes = [[p.shape for p in group["params"]] for group in optimizer.param_groups]
    assert sum(x.untyped_storage().nbytes() for x in held) == state_bytes(shapes).total


shapes = st.lists(st.integers(1, 40), min_size=1, max_size=3)


@given(groups=st.lists(st.lists(shapes, min_size=1, max_size=5), min_size=1, max_size=3), n=st.integers(1, 70))
def test_what_a_number_misses(groups: list[list[list[int]]], n: int) -> None:
    tensors = [shape for group in groups for shape in group]
    count = sum(map(math.prod, tensors))
    more = {  # elements, as `padding` says
        "ddp": 0,
        "zero0": 0,
        "zero1": 2 * len(groups),
        "zero2": 2 * len(groups),
        "zero3": len(tensors),
        "fsdp": sum(math.prod(shape[1:]) for shape in tensors),
    }
    for mode, bound in more.items():
        exact = state_bytes(groups, mode=mode, world_size=n).moments // 8
        number = state_bytes(count, mode=mode, world_size=n).moments // 8
        assert number <= exact
        assert (exact == number) if bound == 0 else (exact < count / n + bound)


def test_fsdp_cuts_as_torch_does() -> None:
    for rows in range(1, 30):
        for n in range(1, 40):
            largest = torch.empty(rows, 3, device="meta").chunk(n)[0].numel()
            assert state_bytes([[(rows, 3)]], mode="fsdp", world_size=n).moments == 8 * largest


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"mode": "zero4"}, "mode must be one of 'ddp', 'fsdp', 'zero0', 'zero1', 'zero2', 'zero3', got 'zero4'"),
        ({"precision": "auto"}, "precision must be one of 'fp32', 'bf16', 'fp16', got 'auto'"),
        ({"offload": "all"}, "offload must be one of None, 'optimizer', 'parameters', got 'all'"),
        ({"offload": "optimizer"}, "offload 'optimizer' needs ZeRO 1, 2 or 3, got DDP"),
        ({"offload": "optimizer", "mode": "zero0"}, "offload 'optimizer' needs ZeRO 1, 2 or 3, got ZeRO 0"),
        ({"offload": "parameters", "mode": "zero2"}, "offload 'parameters' needs ZeRO 3, got ZeRO 2"),
        ({"world_size": 0}, "world size must be a whole number from 1 to 1e15, got 0"),
        ({"world_size": 1.5}, "world size must be a whole number from 1 to 1e15, got 1.5"),
        ({"params": 0}, "params must be a whole number from 1 to 1e15, got 0"),
        ({"params": -7e9}, "params must be a whole number from 1 to 1e15, got -7000000000.0"),
        ({"params": 0.5}, "params must be a whole number from 1 to 1e15, got 0.5"),
        ({"params": math.nan}, "params must be a whole number from 1 to 1e15, got nan"),
        ({"params": math.inf}, "params must be a whole number from 1 to 1e15, got inf"),
        ({"params": True}, "params must be a whole number from 1 to 1e15, got True"),
    ],
    ids=str,
)
def test_refused(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="got") as error:
        state_bytes(**({"params": 100} | kwargs))
    assert str(error.value) == says


# -- numbers as they are written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7e9", 7_000_000_000),
        ("7B", 7_000_000_000),
        ("1.5b", 1_500_000_000),
        ("124M", 124_000_000),
        ("0.124B", 124_000_000),
        ("124e6", 124_000_000),
        ("124_000_000", 124_000_000),
        (" 8 ", 8),
        ("8.0", 8),
        ("+8", 8),
        ("3k", 3000),
        ("1T", 10**12),
        ("1e15", 10**15),
    ],
)
def test_number(text: str, value: int) -> None:
    assert memory_command.parse_count("--params", text) == value


@given(value=st.integers(1, 10**15), small=st.booleans())
def test_every_spelling(value: int, small: bool) -> None:
    for text in (f"{value}", f"{value:_}", f"{value}.0", f"{value}e0", f"{value:.15e}"):
        assert memory_command.parse_count("x", text) == value
    for suffix, factor in memory_command.SUFFIXES.items():
        whole, rest = divmod(value, factor)
        digits = f"{rest}".rjust(len(f"{factor}") - 1, "0")
        assert memory_command.parse_count("x", f"{whole}.{digits}{suffix.lower() if small else suffix}") == value


@given(st.text() | st.text("0123456789.eE+-_kKmMbBtT naif"))
def test_anything_else(text: str) -> None:
    try:
        value = memory_command.parse_count("--params", text)
    except ValueError as error:
        message = str(error)
    else:
        assert 1 <= value <= 10**15
        return
    assert len(message.splitlines()) == 1
    assert message.startswith("--params must be a whole number from 1 to 1e15, like 7e9, 7B or 124M, got ")


NOT_ONE = ["", "0", "-1", "-7e9", "7 billion", "7BB", "B", "1.5", "0.0001K", "1e-9", "1.0000000001B", "1001T", "7,5B"]
NOT_ONE += ["nan", "inf", "1e999999999", "1e99999999999999999999", "0x10", "7e9\n8"]


@pytest.mark.parametrize("text", NOT_ONE)
def test_no_number(text: str) -> None:
    with pytest.raises(ValueError, match="--params must be a whole number"):
        memory_command.parse_count("--params", text)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`printed(line)`: what `python -m adopt_hf memory line...` prints."""

    def run(line: str) -> str:
        monkeypatch.setattr(sys, "argv", ["adopt_hf", "memory", *line.split()])
        main()
        return capsys.readouterr().out

    return run


def test_summary(printed: Any) -> None:
    title, _, head, row64, row8, _, note, time = printed("--params 7e9 --zero 3 --world-size 64 8").splitlines()
    assert title == "Optimizer state of one process: 7,000,000,000 parameters, ZeRO 3, bf16."
    assert head.split()[:3] == ["processes", "held", "by"]
    row64_cells = ["64", "GPU", "0.815", "(875,000,000)", "0.407", "(437,500,000)", "1.22", "(1,312,500,000)"]
    row8_cells = ["8", "GPU", "6.52", "(7,000,000,000)", "3.26", "(3,500,000,000)", "9.78", "(10,500,000,000)"]
    assert [row64.split(), row8.split()] == [row64_cells, row8_cells]
    assert len({len(line) for line in (head, row64, row8)}) == 1
    assert "less than 1 element" in note
    assert time.startswith("Time: a step sends one all-reduce of 292 bytes more than a step of AdamW")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--params 124M", ["124,000,000 parameters, DDP, bf16.", "992,000,000", "0 (0)", "Exact"]),
        ("--params 124M --state-bits 8", ["moments in 8 bits", "Assumed: 31.7 %", "as in GPT-2 124M, the known model"]),
        ("--model gpt2 --state-bits 8", ["GPT-2 124M (124,439,808 parameters), DDP", "(489,", "From the shapes"]),
        ("--model llama-7b --zero 3 --world-size 8", ["Llama 7B (6,738,415,616 parameters), ZeRO 3", "6,738,415,616)"]),
        ("--params 124M --zero 0", ["ZeRO 0, bf16.", "992,000,000", "496,000,000"]),
        ("--params 124M --zero 0 --precision fp32", ["ZeRO 0, fp32.", "992,000,000", "0 (0)"]),
        ("--params 124M --fsdp --world-size 8", ["FSDP, bf16.", " 8 ", "124,000,000", "one row of each tensor"]),
        ("--params 1001 --zero 1 --world-size 8", [" 8 ", "(1,008)", "(504)", "2 elements"]),
        ("--params 8e9 --zero 2 --offload optimizer", ["ZeRO 2, bf16, optimizer offloaded", "CPU", "89.4"]),
        ("--params 8e9 --zero 3 --offload parameters", ["ZeRO 3, bf16, parameters and optimizer", "CPU", "89.4"]),
    ],
)
def test_modes(line: str, says: list[str], printed: Any) -> None:
    out = printed(line)
    for text in says:
        assert text in out


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(("option", "sizes"), [("", [8, 64, 256, 1024]), (" --world-size 1 2", [1, 2])])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_table(option: str, sizes: list[int], precision: str, printed: Any) -> None:
    """Every mode, and in its rows what `state_bytes` says."""
    states, _, _ = printed(f"--table --precision {precision}{option}").partition("\n\n")
    head, rule, *lines = states.splitlines()
    assert set(rule) <= set("|-: ")
    assert cells(head)[5:] == [f"{size}, GiB" for size in ("124M", "1.5B", "7B", "13B", "70B")]
    seen = set()
    for name, n, held_by, moments, master, *gib in map(cells, lines):
        assert len(gib) == 5
        offload = "optimizer" if name.endswith(", offloaded") else None
        for mode in (mode for mode, text in MODES.items() if text in name.split(", ")):
            seen.add((mode, offload, n))
            for size, cell in zip((124e6, 1.5e9, 7e9, 13e9, 70e9), gib, strict=True):
                usage = state_bytes(
                    size, mode=mode, world_size=1 if n == "any" else int(n), precision=precision, offload=offload
                )
                assert float(cell) == pytest.approx(usage.total / 2**30, rel=5e-3)
                assert usage.held_by == held_by
                per_parameter = [usage.moments / size, usage.master / size]
                parts = [int(a) / int(b or 1) for a, _, b in (moments.partition("/"), master.partition("/"))]
                assert parts == pytest.approx(per_parameter, rel=1e-5)
    sharded = [(mode, None) for mode in ("fsdp", "zero1", "zero2", "zero3")]
    sharded += [(mode, "optimizer") for mode in ("zero1", "zero2", "zero3")]
    assert seen == {("ddp", None, "any"), ("zero0", None, "any")} | {(*row, str(n)) for row in sharded for n in sizes}


@pytest.mark.parametrize(("option", "sizes"), [("", "8, 64, 256, 1024"), (" --world-size 2 4", "2, 4")])
def test_time_table(option: str, sizes: str, printed: Any) -> None:
    """Counted on two and four processes by tests/processes/test_peers.py."""
    _, _, times = printed(f"--table{option}").partition("\n\n")
    head, rule, *lines = times.splitlines()
    assert set(rule) <= set("|-: ")
    assert cells(head)[2:] == ["all-reduces", *(f"{size}, bytes" for size in ("124M", "1.5B", "7B", "13B", "70B"))]
    assert [cells(line) for line in lines] == [
        ["DDP, FSDP", sizes, "0", "0", "0", "0", "0", "0"],
        ["ZeRO 0, ZeRO 1, ZeRO 2, ZeRO 3", sizes, "1", "149", "581", "292", "364", "724"],
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--params 7e9 --fsdp", "Time: a step sends nothing that a step of AdamW does not send."),
        ("--model gpt2 --zero 3", "one all-reduce of 149 bytes more than a step of AdamW, on the CPU"),
        ("--params 7e9 --zero 1", "a byte for each of 291 trained tensors, as in Llama 7B, and one more."),
        ("--model gpt2 --zero 2 --offload optimizer", "of 148 trained tensors, and one more, for each micro-batch."),
        ("--model gpt2 --zero 1 --offload optimizer", "of 148 trained tensors, and one more."),
    ],
)
def test_time(line: str, says: str, printed: Any) -> None:
    assert says in printed(line).splitlines()[-1]


def test_traffic_of_several_micro_batches() -> None:
    assert traffic.added(10, "zero2", "optimizer", 4) == traffic.Added(1, 44)
    assert traffic.added(10, "zero2", None, 4) == traffic.added(10, "zero1", "optimizer", 4) == (1, 11)
    with pytest.raises(ValueError, match=r"mode must be one of 'ddp', .*, got 'zero4'"):
        traffic.added(10, "zero4")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "one of the arguments --params --model --table is required"),
        ("--model gpt5", "--model: invalid choice: 'gpt5' (choose from"),
        ("--params 0", "--params must be a whole number from 1 to 1e15, like 7e9, 7B or 124M, got '0'"),
        ("--params=-7e9", "--params must be a whole number from 1 to 1e15, like 7e9, 7B or 124M, got '-7e9'"),
        ("--params many", "--params must be a whole number from 1 to 1e15, like 7e9, 7B or 124M, got 'many'"),
        ("--params 7B --world-size 0", "--world-size must be a whole number from 1"),
        ("--params 7B --world-size 8 x", "got 'x'"),
        ("--params 7B --world-size", "--world-size: expected at least one argument"),
        ("--params 7B --zero 4", "--zero: invalid choice: 4 (choose from"),
        ("--params 7B --precision tf32", "--precision: invalid choice: 'tf32' (choose from"),
        ("--params 7B --offload nvme --zero 3", "--offload: invalid choice: 'nvme' (choose from"),
        ("--params 7B --offload optimizer", "offload 'optimizer' needs ZeRO 1, 2 or 3, got DDP"),
        ("--params 7B --offload optimizer --fsdp", "offload 'optimizer' needs ZeRO 1, 2 or 3, got FSDP"),
        ("--params 7B --offload optimizer --zero 0", "offload 'optimizer' needs ZeRO 1, 2 or 3, got ZeRO 0"),
        ("--params 7B --offload parameters --zero 2", "offload 'parameters' needs ZeRO 3, got ZeRO 2"),
        ("--params 7B --zero 3 --fsdp", "--fsdp: not allowed with argument --zero"),
        ("--params 7B --table", "--table: not allowed with argument --params"),
        ("--table --zero 3", "--table prints every mode: remove --zero, --fsdp and --offload"),
        ("--table --offload optimizer", "--table prints every mode"),
        ("--table --world-size 0", "--world-size must be a whole number from 1"),
    ],
)
def test_refusals_exit_with_2(line: str, says: str, printed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        printed(line)
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    *usage, message = captured.err.splitlines()
    assert usage[0].startswith("usage: python -m adopt_hf memory")
    assert message.startswith("python -m adopt_hf memory: error: ")
    assert says in message


WITHOUT = """
import sys
from adopt_hf.commands import main
main()
print([name for name in ("deepspeed", "transformers") if name in sys.modules])
"""


def test_needs_neither_deepspeed_nor_transformers() -> None:
    line = ["memory", "--params", "7B", "--zero", "3"]
    out = python("-c", WITHOUT, *line, env=WITHOUT_TRANSFORMERS)
    assert "78.2 (84,000,000,000)" in out
    assert out == python("-m", "adopt_hf", *line, env=WITHOUT_TRANSFORMERS) + "[]\n"
