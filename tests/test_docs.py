"""The docs show what the code and the kept results say, so that nothing is forgotten when the code changes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from adopt_hf.integrations.deepspeed.checkpoints import OTHER_WORLD_SIZE
from adopt_hf.memory import state_bytes
from experiments.harness import pages
from experiments.launches import meshes
from experiments.launches.matrix import COLUMNS, LOOPS, MODES, NOT_HERE, Matrix, is_within_bounds, seen_as
from experiments.pages import launches, options, registry
from tests.mutants.catalog.docs import MUTANTS
from tests.mutants.mutant import Mutant, apply

ROOT = Path(__file__).parents[1]
INTEGRATIONS = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")


# -- what a program writes ---------------------------------------------------------------------------------------------


def test_no_passage_is_stale() -> None:
    """If this fails: `make docs-numbers`. The lines below name the pages and the markers."""
    assert registry.stale() == []


def test_every_text_has_a_place() -> None:
    assert {found.key for _, found in registry.everything()} == set(registry.TEXTS)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A tree of one page, with a block and a value."""
    path = tmp_path / "README.md"
    path.write_text(
        "before\n\n<!-- optim args: make docs-numbers -->\n\nold\n\n<!-- end of optim args -->\n\n"
        "all <!--= number of kills -->7<!--/--> of them\n",
        encoding="utf-8",
    )
    return path


def test_what_is_stale_is_named_and_written_again(page: Path) -> None:
    assert registry.stale(page.parent) == [
        "README.md: <!-- optim args: make docs-numbers --> is stale: run `make docs-numbers`",
        "README.md: <!--= number of kills --> is stale: run `make docs-numbers`",
    ]
    registry.rebuild(page.parent)
    assert registry.stale(page.parent) == []
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n\n<!-- optim args: make docs-numbers -->\n\n{options.keys()}\n\n<!-- end of")
    assert text.endswith(f"\n\nall <!--= number of kills -->{launches.number_of_kills()}<!--/--> of them\n")
    registry.rebuild(page.parent)
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<!-- end of optim args -->", "", "README.md: 1 markers begin a passage and 0 end one, 0 are pairs"),
        ("<!--/-->", "", "README.md: 1 markers begin a passage and 0 end one, 0 are pairs"),
        ("= number of kills", "= number of cats", "nothing makes a passage 'number of cats'"),
    ],
)
def test_a_marker_that_means_nothing_is_an_error(page: Path, old: str, new: str, message: str) -> None:
    page.write_text(page.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises((ValueError, KeyError), match=message):
        registry.stale(page.parent)


@pytest.mark.parametrize(
    "mutant", [m for m in MUTANTS if m.file.endswith(".md") and "end of" not in m.old], ids=lambda m: m.name
)
def test_planted_faults_of_the_pages_are_noticed(mutant: Mutant, tmp_path: Path) -> None:
    """Those of `make mutants`, each in a copy of its page: the page and the command are named."""
    path = tmp_path / mutant.file
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / mutant.file, path)
    assert registry.stale(tmp_path) == []
    apply(mutant, tmp_path)
    (line,) = registry.stale(tmp_path)
    assert line.startswith(f"{mutant.file}: <!--")
    assert line.endswith(" is stale: run `make docs-numbers`")


def test_a_text_goes_into_its_own_block(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    pages.write(page, {"optim args": "new"})
    assert page.read_text(encoding="utf-8") == text.replace("\n\nold\n\n", "\n\nnew\n\n")
    with pytest.raises(ValueError, match="lacks the markers <!-- options: COMMAND --> and <!-- end of options -->"):
        pages.write(page, {"options": "new"})


def test_a_table_has_its_bars_escaped() -> None:
    table = pages.table(["a|b", "c"], [["1\n2", 3]], numbers=True)
    assert table == "| a\\|b | c |\n| --- | ---: |\n| 1 2 | 3 |"


# -- what two processes did --------------------------------------------------------------------------------------------


def test_every_cell_of_the_matrix_is_within_the_bounds_of_its_test() -> None:
    matrix = Matrix.load()
    assert matrix.seen == {mode.name: seen_as(mode) for mode in MODES}
    wanted = {(mode.name, loop, column): mode for mode in MODES for loop in LOOPS for column in COLUMNS}
    assert matrix.cells.keys() == wanted.keys()
    for (name, loop, column), mode in wanted.items():
        cell = matrix.cells[name, loop, column]
        assert is_within_bounds(mode, column, cell), (name, loop, column, cell)


@pytest.mark.parametrize(
    ("mode", "column", "cell"),
    [
        ("ddp fp32", "parity", 0.5),
        ("ddp fp32", "parity", "3e-07"),
        ("zero3 bf16", "parity", 0.936),
        ("cpu fp32", "parity", 3e-7),
        ("ddp fp32", "resume", "FAILED"),
        ("ddp fp32", "really ADOPT", "not run"),
    ],
)
def test_the_bounds_reject_what_would_have_failed(mode: str, column: str, cell: float | str) -> None:
    assert not is_within_bounds(next(m for m in MODES if m.name == mode), column, cell)


def test_every_cell_of_the_meshes_is_within_the_bounds_of_its_test() -> None:
    rows = launches.read("mesh_modes")["rows"]
    found = {(row["mesh"], row["loop"], row["column"]): row["cell"] for row in rows}
    bounds = meshes.bounds()
    assert found.keys() == bounds.keys()
    for key, words in bounds.items():
        assert meshes.is_within_bounds(words, found[key]), (key, found[key])
    assert not any(meshes.is_within_bounds(None, cell) for cell in (meshes.PARITY, -1.0, float("nan"), "1e-07"))
    assert not meshes.is_within_bounds("bit for bit", "not run")


def test_the_kept_bytes_are_those_of_the_shapes() -> None:
    """tests/processes/test_memory.py holds a measurement to the same numbers."""
    from adopt_hf import param_groups
    from experiments.launches.memory_model import Model

    groups = [[tuple(p.shape) for p in group["params"]] for group in param_groups(Model(), 0.1)]
    for row in launches.read("state_bytes")["rows"]:
        if row["mode"] == "fsdp1" or (row["mode"] == "fsdp" and row["rank"]):
            continue  # cut elsewhere; what the other rank does not have
        expected = state_bytes(
            groups,
            mode=row["mode"],
            world_size=row["processes"],
            precision=row["precision"],
            offload=row["offload"],
        )
        assert (row["moments"], row["master"]) == (expected.moments, expected.master), row


def test_the_kept_kills_are_those_that_the_test_asks_for() -> None:
    rows = launches.read("kills")["rows"]
    assert sum(row["kills"] for row in rows) == 20
    for row in rows:
        assert 0 < row["of_all"] < row["kills"]
        assert max(row["in_saving"], row["incomplete"]) <= row["kills"]


def test_the_docs_write_the_converter_as_the_error_message_does() -> None:
    assert OTHER_WORLD_SIZE.split("`python ")[1].split()[1] in INTEGRATIONS


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "accelerate_configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_launch_config_has_a_row(path: Path) -> None:
    """cpu and ddp have theirs in the table as well: a new file without a measurement fails here."""
    assert path.stem in {name.split()[0] for name in [*(mode.name for mode in MODES), *NOT_HERE]}


# -- make -------------------------------------------------------------------------------------------------------------


def planned(target: str, folder: Path) -> str:
    """Return what `make target` would run in a tree that nothing was installed in."""
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
    assert "-m venv" not in planned("test", tmp_path), "it would be made again"
