"""The files of a release: sdist and wheel, CITATION.cff, CHANGELOG.md, the metadata, the templates of issues."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

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
    (title,) = re.findall(r"^  title     = \{(.*)\},$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.sub(r"[{}$_\\]", "", title) == paper["title"]
    assert (paper["authors"][0]["family-names"], paper["year"]) == ("Taniguchi", 2024)


def test_the_page_of_versions_names_the_present_one() -> None:
    assert f"The present one is {adopt_hf.__version__}," in (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")


def test_the_classifiers_name_pythons_that_are_allowed() -> None:
    versions = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert versions
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in versions)
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ((?:3\.\d+(?:, )?)+) \|", page, re.MULTILINE)
    assert sorted(", ".join(cells).split(", ")) == sorted(versions), "the page says what has run on each"


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_asks_for_the_environment(template: Path) -> None:
    form = yaml.safe_load(template.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    assert [part["id"] for part in form["body"] if "adopt-hf env" in part["attributes"]["label"]] == ["env"]


def test_the_newest_section_of_the_changelog_is_of_this_version() -> None:
    """A version that was published has a date, and CITATION.cff repeats that of the newest."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d|not published)\)$", text, re.MULTILINE)
    assert len(sections) == text.count("\n## "), "every heading is a version with its date"
    versions = [Version(number) for number, _ in sections]
    assert versions == sorted(versions, reverse=True)
    assert sections[0][0] == adopt_hf.__version__
    newest = text.split("\n## ")[1]
    assert set(re.findall(r"^### (.*)$", newest, re.MULTILINE)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
    }


def test_the_citation_has_the_date_of_the_changelog(citation: dict[str, Any]) -> None:
    newest = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    assert newest.startswith(f"{citation['version']} ({citation['date-released']})")


# -- the address of the repository -------------------------------------------------------------------------------------

ADDRESS = PROJECT["urls"]["Repository"]
ADDRESSED = ["CITATION.cff", "pyproject.toml"]  # the files that have to repeat it


def test_the_addresses_of_the_metadata_are_of_one_repository() -> None:
    assert {"Repository", "Documentation", "Issues", "Changelog"} <= PROJECT["urls"].keys()
    for address in PROJECT["urls"].values():
        assert address == ADDRESS or address.startswith(f"{ADDRESS}/")
    for path in re.findall(r"/(?:blob|tree)/main/(\S+)", " ".join(PROJECT["urls"].values())):
        assert (ROOT / path).exists()


def test_the_citation_has_the_address(citation: dict[str, Any]) -> None:
    assert citation["repository-code"] == ADDRESS


@pytest.mark.parametrize("name", [*RELEASE_FILES[:3], *(str(path.relative_to(ROOT)) for path in TEMPLATES)])
def test_no_other_address_is_made_up(name: str) -> None:
    found = re.findall(r"https?://[^\s\"]+|\S+@\S+\.\w+", (ROOT / name).read_text(encoding="utf-8"))
    assert [address for address in found if not address.startswith(ADDRESS)] == []


def make_address(folder: Path, url: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "address", f"PYTHON={sys.executable}", f"URL={url}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_one_command_writes_the_address(tmp_path: Path) -> None:
    for name in (*ADDRESSED, "Makefile", "README.md"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert make_address(tmp_path, "somewhere").returncode == 2
    assert ADDRESS in (tmp_path / "pyproject.toml").read_text(encoding="utf-8")
    for url in ("https://host.test/a-b/adopt_hf/", "https://other.test/c/adopt_hf"):  # a second move, too
        done = make_address(tmp_path, url)
        assert done.returncode == 0, done.stderr
        urls = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
        wanted = url.rstrip("/")
        assert urls == {name: address.replace(ADDRESS, wanted) for name, address in PROJECT["urls"].items()}
        assert f'repository-code: "{wanted}"\n' in (tmp_path / "CITATION.cff").read_text(encoding="utf-8")
    assert (tmp_path / "README.md").read_bytes() == (ROOT / "README.md").read_bytes().replace(
        ADDRESS.encode(), b"https://other.test/c/adopt_hf"
    )


# -- sdist and wheel ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built without a download."""
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    variables = {**os.environ, "ADOPT_HF_WHEEL": "any"}  # compiling takes ten seconds: core/test_wheels.py does it
    subprocess.run(command, cwd=ROOT, env=variables, check=True, capture_output=True)
    return folder


@pytest.mark.everyday
def test_pypi_would_take_both(built: Path) -> None:
    files = [str(next(built.glob(pattern))) for pattern in ("*.tar.gz", "*.whl")]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


@pytest.mark.everyday
def test_the_wheel_has_the_metadata(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Version"] == adopt_hf.__version__
    urls = dict(address.split(", ", 1) for address in metadata.get_all("Project-URL", []))
    assert urls == PROJECT["urls"]
    assert metadata.get_all("Classifier") == sorted(PROJECT["classifiers"])


@pytest.mark.everyday
def test_the_sdist_is_complete(built: Path) -> None:
    """It has what README.md, CONTRIBUTING.md and the Makefile need, and nothing that a user has left in the folder."""
    (archive,) = built.glob("adopt_hf-*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    at_the_top = {
        "Makefile",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "README.md",
        "LICENSE",
        "constraints.txt",
        "hatch_build.py",
    }
    scripts = {"examples/slurm/torchrun.sbatch", "examples/slurm/job.sh", "tests/examples/slurm/srun"}
    assert {*RELEASE_FILES, *at_the_top, *scripts} - names == set()
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    not_ignored = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True)
    if not_ignored.returncode != 0:
        pytest.skip("the archive has every file that it needs; without git, nothing tells what is left over")
    assert names - {*not_ignored.stdout.splitlines(), "PKG-INFO"} == set()
