"""The files of a release: the sdist, CITATION.cff, the classifiers, the templates of issues."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import adopt_hf

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
RELEASE_FILES = ("CITATION.cff", "SECURITY.md", "CODE_OF_CONDUCT.md", "docs/versions.md", "docs/several_machines.md")


@pytest.fixture(scope="module")
def citation() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    return found


def test_the_citation_is_of_this_version(citation: dict[str, Any]) -> None:
    assert citation["version"] == adopt_hf.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["keywords"] == PROJECT["keywords"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys(), "the format requires these"


def test_the_paper_is_cited(citation: dict[str, Any]) -> None:
    paper = citation["preferred-citation"]
    assert paper["title"] in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert (paper["authors"][0]["family-names"], paper["year"]) == ("Taniguchi", 2024)


def test_the_page_of_versions_names_the_present_one() -> None:
    assert f"The present one is {adopt_hf.__version__}," in (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")


def test_the_classifiers_name_pythons_that_are_allowed() -> None:
    versions = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert versions
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in versions)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_asks_for_the_environment(template: Path) -> None:
    form = yaml.safe_load(template.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    assert [part["id"] for part in form["body"] if "adopt-hf env" in part["attributes"]["label"]] == ["env"]


@pytest.mark.parametrize("name", [*RELEASE_FILES[:3], *(str(path.relative_to(ROOT)) for path in TEMPLATES)])
def test_no_address_is_made_up(name: str) -> None:
    """The project has no host of its own in pyproject.toml, so its files name none."""
    assert "urls" not in PROJECT, "name its addresses here, too"
    assert re.findall(r"https?://\S+|\S+@\S+\.\w+", (ROOT / name).read_text(encoding="utf-8")) == []


@pytest.mark.everyday
def test_the_sdist_is_complete(tmp_path: Path) -> None:
    """It has what README.md, CONTRIBUTING.md and the Makefile need, and nothing that a user has left in the folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("adopt_hf-*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    at_the_top = {"Makefile", "CONTRIBUTING.md", "CHANGELOG.md", "README.md", "LICENSE", "constraints.txt"}
    scripts = {"examples/slurm/torchrun.sbatch", "examples/slurm/job.sh", "tests/examples/slurm/srun"}
    assert {*RELEASE_FILES, *at_the_top, *scripts} - names == set()
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    not_ignored = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if not_ignored.returncode != 0:
        pytest.skip("the archive has every file that it needs; without git, nothing tells what is left over")
    assert names - {*not_ignored.stdout.splitlines(), "PKG-INFO"} == set()
