"""What the docs show is what the code says: tables are not forgotten when the code moves on."""

import ast
import inspect
import math
import re
import subprocess
from pathlib import Path

import pytest
import torch

from adopt_hf import ADOPT, param_groups
from adopt_hf.integrations import deepspeed, deepspeed_adam, memory, optim_args
from adopt_hf.integrations.zero import OTHER_WORLD_SIZE
from tests.distributed.matrix import (
    BEGIN,
    BF16_SHARE,
    COLUMNS,
    END,
    FP32_TOLERANCE,
    LOOPS,
    MODES,
    NOT_HERE,
    Matrix,
    Mode,
    seen_as,
)
from tests.distributed.memory_model import Model

ROOT = Path(__file__).parents[1]
INTEGRATIONS = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]


def test_the_matrix_in_the_docs_has_every_mode_and_nothing_failed() -> None:
    """Each cell of each loop is within the bounds that the measurement itself is held to."""
    shown = rows(INTEGRATIONS.split(BEGIN)[1].split(END)[0])
    wanted = rows(Matrix().table())
    assert shown[0] == wanted[0]
    assert [row[0] for row in shown] == [row[0] for row in wanted]
    cells = {row[0]: row for row in shown[2:]}
    for mode in MODES:
        _, processes, *judged = cells.pop(mode.name)
        assert processes == seen_as(mode)
        assert len(judged) == len(COLUMNS) * len(LOOPS)
        for loop in range(len(LOOPS)):
            parity, *others = judged[len(COLUMNS) * loop : len(COLUMNS) * (loop + 1)]
            assert is_within_bounds(mode, parity), (mode, parity)
            assert others == ["bit for bit", "yes"], mode
    assert {name: row[1] for name, row in cells.items()} == {n: f"skipped: {why}" for n, why in NOT_HERE.items()}


def is_within_bounds(mode: Mode, parity: str) -> bool:
    if mode.world_size == 1:
        return parity == "the reference"
    if mode.bf16:
        share = re.fullmatch(r"([0-9.]+)% of the way", parity)
        return share is not None and float(share[1]) < 100 * BF16_SHARE
    return re.fullmatch(r"[0-9.]+e-[0-9]+", parity) is not None and float(parity) < FP32_TOLERANCE


@pytest.mark.parametrize(
    ("mode", "parity"),
    [("ddp fp32", "5e-01"), ("ddp fp32", "3.6% of the way"), ("zero3 bf16", "93.6% of the way"), ("cpu fp32", "3e-07")],
)
def test_the_bounds_reject_what_would_have_failed(mode: str, parity: str) -> None:
    assert not is_within_bounds(next(m for m in MODES if m.name == mode), parity)


def test_the_memory_table_in_the_docs_is_the_commands() -> None:
    assert memory.table() in INTEGRATIONS


def test_the_docs_write_the_converter_as_the_error_message_does() -> None:
    assert OTHER_WORLD_SIZE.split("`python ")[1].split()[1] in INTEGRATIONS


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "accelerate_configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_launch_config_has_a_row(path: Path) -> None:
    """cpu and ddp have theirs in the table as well: a new file without a measurement fails here."""
    names = {row[0].split()[0] for row in rows(INTEGRATIONS.split(BEGIN)[1].split(END)[0])}
    assert path.stem in names


# -- README, and the keys of other pages -------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_IN_README = ("float32_apart", "regroup")  # arguments for integrations, in the docstring alone


def test_the_keys_of_optim_args_in_the_readme_are_those_that_it_takes() -> None:
    assert words_after("Keys: `", README) == sorted(optim_args.KEYS)


def test_the_keys_of_a_deepspeed_block_in_the_docs_are_those_that_it_takes() -> None:
    assert words_after("`params` takes what `ADOPT` takes (`", INTEGRATIONS) == sorted(deepspeed.KEYS)


def words_after(start: str, page: str) -> list[str]:
    """The words between `start`, which stands there once, and the next backtick, in the order of the alphabet."""
    assert page.count(start) == 1
    return sorted(page.split(start)[1].split("`")[0].split())


def test_the_defaults_in_the_readme_are_those_of_adopt() -> None:
    """Every argument has a place in the table, and every place has the argument's default."""
    table = README.split("| | default | |\n")[1].split("\n\n")[0]
    shown = {}
    for names, defaults, _ in rows(table)[1:]:
        keys = re.findall(r"`([a-z0-9_]+)`", names)
        values = ast.literal_eval(f"[{defaults}]")
        assert len(keys) == len(values), (names, defaults)
        shown |= dict(zip(keys, values, strict=True))
    taken = inspect.signature(ADOPT.__init__).parameters.values()
    named = [p for p in taken if p.default is not p.empty and p.name not in NOT_IN_README]
    assert shown == {p.name: p.default for p in named}
    group = ADOPT([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert shown == {name: group[name] for name in shown}  # what a param group has, too


# -- bytes of optimizer state ------------------------------------------------------------------------------------------


def measured_bytes() -> str:
    """The table of what tests/distributed/test_memory.py measures, from the model's shapes."""
    groups = [[tuple(p.shape) for p in group["params"]] for group in param_groups(Model(), 0.1)]
    elements = sum(math.prod(shape) for group in groups for shape in group)

    def cell(mode: str, n: int, precision: str = "fp32") -> str:
        first = memory.state_bytes(groups, mode=mode, world_size=n, precision=precision)
        text = f"{first.moments:,} + {first.master:,}"
        if mode == "fsdp" and n == 2:
            return f"{text} (rank 0), {8 * elements - first.moments:,} + 0 (rank 1)"
        return text

    modes = (
        ("DDP; ZeRO 0 in fp32", "ddp", "fp32"),
        ("ZeRO 0 in bf16", "zero0", "bf16"),
        ("FSDP2", "fsdp", "fp32"),
        ("ZeRO 1 and 2", "zero2", "fp32"),
        ("ZeRO 3", "zero3", "fp32"),
    )
    header = "| bytes per process: moments + fp32 weights | 1 process | 2 processes |\n| --- | ---: | ---: |"
    lines = [f"| {title} | {cell(mode, 1, dtype)} | {cell(mode, 2, dtype)} |" for title, mode, dtype in modes]
    return "\n".join([header, *lines])


def test_the_measured_bytes_in_the_docs_are_those_of_the_shapes() -> None:
    """test_memory.py holds the measurement to the same numbers."""
    assert measured_bytes() in INTEGRATIONS
    elements = sum(p.numel() for p in Model().parameters())
    assert f"{elements:,} parameters of odd shapes in {len(list(Model().parameters()))} tensors" in INTEGRATIONS


def test_the_docs_list_the_settings_of_deepspeed_that_are_refused() -> None:
    lines = [f"| `{'.'.join(row.path)}` | {row.what} |" for row in deepspeed_adam.REPLACEMENTS]
    table = "\n".join(["| setting | it |", "| --- | --- |", *lines])
    assert INTEGRATIONS.split("<!-- refused settings -->\n\n")[1].split("\n\n<!-- end")[0] == table


def planned(target: str, folder: Path) -> str:
    """What `make target` would run in a tree that nothing was installed in."""
    return subprocess.run(
        ["make", "-n", target, f"VENV={folder}"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_each_make_target_installs_what_it_needs(tmp_path: Path) -> None:
    """The demo needs the recipe's packages, and neither DeepSpeed nor MuJoCo; the tests need everything."""
    demo, test = planned("demo", tmp_path), planned("test", tmp_path)
    assert ('".[examples]"' in demo, "[dev]" in demo, "peers" in demo) == (True, False, False)
    assert ('".[dev]"' in test, "peers" in test) == (True, True)
    (tmp_path / "bin").mkdir()
    for name in ("bin/python", ".installed-examples", ".installed"):
        (tmp_path / name).touch()
    assert "pip install" not in planned("demo", tmp_path)
    assert "pip install" not in planned("test", tmp_path)
    (tmp_path / ".installed").unlink()
    assert '".[dev]"' in planned("test", tmp_path)
    assert "-m venv" not in planned("test", tmp_path), "it would be made anew"
