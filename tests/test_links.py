"""Each file, heading, module, command and target of this repository that a page names exists."""

import re
from pathlib import Path

import pytest

from adopt_hf import commands
from experiments.harness import pages
from experiments.pages import registry
from experiments.table import EXPERIMENTS

ROOT = Path(__file__).parents[1]
FOLDERS = ("adopt_hf", "docs", "examples", "experiments", "tests")
PATH = re.compile(rf"(?<![\w/.:-])(?:{'|'.join(FOLDERS)})/(?:[\w./-]*\w/?)?")
MAPS = ("CONTRIBUTING.md", "CHANGELOG.md")
ANY = re.compile(r"(?<![A-Za-z])[A-Z]{3,}(?![A-Za-z]|\.md)")  # a part that stands for any name
MODULE = re.compile(rf"-m ((?:{'|'.join(FOLDERS)})\.[.\w]+)")
COMMANDS = {
    "-m experiments": (*EXPERIMENTS, "list", "report"),
    "-m adopt_hf": tuple(commands.COMMANDS),
    "make": re.findall(r"[\w-]+", re.findall(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0]),
}
PAGES = [*registry.pages(ROOT), ROOT / "tests" / "README.md"]


def headings(page: Path) -> list[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found]


def dead_links(page: Path, text: str) -> list[str]:
    """Return the links to files or headings that do not exist."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        if "://" not in link and not (target.exists() and (not heading or heading in headings(target))):
            found.append(link)
    return found


def missing_files(page: Path, text: str) -> list[str]:
    """Return the paths and the names of Python files that do not exist.

    A part in capitals, as in `examples/accelerate_configs/CONFIG.yaml`, stands for any name. A path in backticks may be
    relative to the page or to `adopt_hf/`. Outside the maps of the repository, a folder in backticks may be one that a
    program writes.
    """
    found = []
    for path in [*PATH.findall(text), *re.findall(r"`([A-Z]\w*\.md)`", text)]:
        if not list(ROOT.glob(ANY.sub("*", path))):
            found.append(path)
    is_map = page.name in MAPS or page.parent.name == "tests"
    for name in re.findall(r"`([\w/]+(?:\.py|/))`" if is_map else r"`([\w/]+\.py)`", text):
        pattern = ANY.sub("*", name)
        places = [(base, pattern) for base in (ROOT, page.parent, ROOT / "adopt_hf")]
        if "/" not in name:
            places += [(ROOT / folder, f"**/{pattern}") for folder in FOLDERS]
        if not any(list(base.glob(wanted)) for base, wanted in places):
            found.append(name)
    return found


def unknown_commands(text: str) -> list[str]:
    """Return the modules after `-m`, the commands and the targets of `make` that do not exist.

    A table of kept results quotes the command that was typed then, so passages between markers are left out.
    """
    typed = pages.BLOCK.sub("", text)
    found = []
    for module in MODULE.findall(typed):
        path = ROOT.joinpath(*module.split("."))
        if not (path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()):
            found.append(module)
    for command, names in COMMANDS.items():
        named = re.findall(rf"(?:python |launch |`|^    ){command} ([a-z][\w-]*)", typed, re.MULTILINE)
        found += [f"{command} {name}" for name in named if name not in names]
    return found


def dead(page: Path) -> set[str]:
    """Return what the page names and what does not exist."""
    text = page.read_text(encoding="utf-8")
    return {*dead_links(page, text), *missing_files(page, text), *unknown_commands(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    assert dead(page) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_begins_with_the_marker_of_a_value(page: Path) -> None:
    """GitHub reads such a line as HTML up to its end, and shows no link or code of it."""
    assert re.findall(r"^ *<!--= .*$", page.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[here](docs/nothing.md)", "docs/nothing.md"),
        ("[here](#nothing)", "#nothing"),
        ("see adopt_hf/backends/nothing.py.", "adopt_hf/backends/nothing.py"),
        ("the folder `benchmarks/`", "benchmarks/"),
        ("the module `state/nothing.py`", "state/nothing.py"),
        ("in `test_nothing.py`", "test_nothing.py"),
        ("in `nothing/test_NAME.py`", "nothing/test_NAME.py"),
        ("`examples/accelerate_configs/CONFIG.toml`", "examples/accelerate_configs/CONFIG.toml"),
        ("    python -m experiments.nothing --rounds 9", "experiments.nothing"),
        ("`python -m experiments nothing`", "-m experiments nothing"),
        ("    accelerate launch -m adopt_hf nothing x.py", "-m adopt_hf nothing"),
        ("`make test`, `make nothing`", "make nothing"),
    ],
)
def test_a_name_of_nothing_is_found(text: str, named: str, tmp_path: Path) -> None:
    page = tmp_path / "CONTRIBUTING.md"
    page.write_text(f"# A title\n\n[here](#a-title): `examples/accelerate_configs/CONFIG.yaml`\n\n{text}\n")
    assert dead(page) == {named}
