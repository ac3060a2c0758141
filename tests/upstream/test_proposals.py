"""Each proposal to another project is complete, applies to the installed version and removes the fault it names."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forks import BEFORE_TRANSFORMERS
from tests.support.overlay import UPSTREAM, VERSIONS, in_changed, script_of
from tests.support.processes import ROOT, free_port, python, run

PROPOSALS = sorted(path.name for path in UPSTREAM.iterdir() if path.is_dir())
FAULTS = {  # what the reproducer prints with the installed version
    "accelerate-offload": r"given Still, trained by DeepSpeedCPUAdam: the weights changed by 0\.100",
    "deepspeed-nvme-resume": r"loaded weights differ by {'large': 0\.0, 'small': 0\.0[1-9]\d*}, "
    r"those of the next step by {'large': 0\.0[1-9]\d*, 'small': 0\.[1-9]\d*}, lr 0\.02 instead of 0\.01",
    "deepspeed-stage3-gradients": r"the step without a gradient changes the weights by {'none': 1\.0, 'cpu': 1\.0}",
    "deepspeed-universal-groups": re.escape("saved [(0.1, 0.01), (0.0, 0.02)] loaded [(0.1, 0.01), (0.1, 0.01)]"),
    "transformers-adopt": r"ValueError: adopt is not a valid OptimizerNames",
    "transformers-register-optimizer": r"ImportError: cannot import name 'register_optimizer'",
}
FIRST = {"deepspeed-nvme-resume": "from tests.support import aio\naio.stand_in()\n"}  # what runs before a reproducer
FORMS = {  # the headings that a template of the project asks for
    "accelerate": ("### System Info", "### Reproduction", "### Expected behavior"),
    "deepspeed": ("**Describe the bug**", "**To Reproduce**", "**Expected behavior**", "**System info**"),
    "transformers": ("### Feature request", "### Motivation", "### Your contribution"),
}


@pytest.mark.parametrize("proposal", PROPOSALS)
def test_it_is_complete(proposal: str) -> None:
    folder = UPSTREAM / proposal
    assert {"issue.md", "reproducer.py", "change.patch"} <= {path.name for path in folder.iterdir()}
    issue = (folder / "issue.md").read_text(encoding="utf-8")
    assert all(heading in issue for heading in FORMS[proposal.partition("-")[0]])
    assert f"]({proposal}/issue.md)" in (UPSTREAM / "README.md").read_text(encoding="utf-8")


def test_the_patches_are_for_the_pinned_versions() -> None:
    """With others the tests below are skipped. The last row of a package is for the newest Pythons."""
    pins = re.findall(r"^(\w+)==([\d.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: version for name, version in pins if name in VERSIONS} == VERSIONS


@pytest.mark.slow
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_the_reproducer_fails_before_and_passes_after(
    proposal: str, changed: Callable[[str], str], tmp_path: Path
) -> None:
    code = FIRST.get(proposal, "") + script_of(UPSTREAM / proposal / "reproducer.py")
    options = {"cwd": tmp_path, "modules": BEFORE_TRANSFORMERS, "env": {"MASTER_PORT": str(free_port())}}
    before = run("-c", code, **options)
    assert before.returncode != 0
    assert re.search(FAULTS[proposal], before.stdout + before.stderr), before.stdout + before.stderr
    after = run(*in_changed(changed(proposal), code), **options)
    assert after.returncode == 0, after.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)  # DeepSpeed builds its aio extension at the first use
def test_nvme_with_libaio(changed: Callable[[str], str], tmp_path: Path) -> None:
    """The same without a stand-in for the extension."""
    op_builder = pytest.importorskip("deepspeed.ops.op_builder")
    if not op_builder.AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("libaio is not installed: no NVMe offload in DeepSpeed")
    python("-c", "from deepspeed.ops.op_builder import AsyncIOBuilder; AsyncIOBuilder().load()", timeout=2000)
    proposal, installed = "deepspeed-nvme-resume", Path(op_builder.__file__).parents[2]
    code = script_of(UPSTREAM / proposal / "reproducer.py")
    variables = {"MASTER_PORT": str(free_port())}
    before = run("-c", code, cwd=tmp_path, env=variables)
    assert before.returncode != 0
    assert re.search(FAULTS[proposal], before.stdout + before.stderr), before.stdout + before.stderr
    first = f"from tests.support import aio\naio.of_installed({str(installed)!r})\n"
    after = run(*in_changed(changed(proposal), first + code), cwd=tmp_path, env=variables)
    assert after.returncode == 0, after.stderr


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [name for name in PROPOSALS if list((UPSTREAM / name).glob("test_*.py"))])
def test_its_own_tests_pass(proposal: str, changed: Callable[[str], str], tmp_path: Path) -> None:
    (tests,) = (UPSTREAM / proposal).glob("test_*.py")
    settings = tmp_path / "none.ini"
    settings.write_text("[pytest]\n")
    arguments = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", str(settings), str(tests)]
    code = f"import pytest\nraise SystemExit(pytest.main({arguments}))"
    done = run(*in_changed(changed(proposal), code), cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
