"""The check for a GPU, without one: a dry run in Triton's interpreter, planted faults, and what ends a run.

- every check that can run without a GPU passes, and those that cannot say so;
- a kernel that is wrong by one place, in one special number or beside its tensor fails;
- a section that raises is a verdict and the next one runs; the budget ends whatever is running.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from adopt_hf import backends
from experiments.gpu import kernels
from experiments.gpu import run as gpu_check
from experiments.gpu.check import Check
from tests.support import processes

QUICK = ("environment", "specials", "scaler", "host")


def run(*arguments: str, **environment: str) -> processes.Finished:
    command = ("-m", "experiments", "gpu_check", *arguments)
    return processes.run(*command, cwd=processes.ROOT, env={"TRITON_INTERPRET": "1", **environment})


def verdicts(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / gpu_check.FILE).read_text(encoding="utf-8"))["checks"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sections", [QUICK, pytest.param((), id="all")])
def test_a_dry_run_passes(sections: tuple[str, ...], tmp_path: Path) -> None:
    only = ["--only", *sections] if sections else []
    done = run("--dry", "--budget", "1800", "--out", str(tmp_path), *only)
    found = verdicts(tmp_path)
    assert [v for v in found if v["verdict"] == "FAIL"] == []
    assert done.returncode == 0, done.stderr
    assert {v["section"] for v in found} == set(sections or gpu_check.SECTIONS)
    assert {v["figure"] for v in found if v["verdict"] == "SKIP"} <= {"needs a GPU"}
    assert sum(v["verdict"] == "PASS" for v in found) > 10
    assert all(f"{v['verdict']} {v['section']}: {v['name']}" in done.stdout for v in found)
    assert "| verdict | section | name | figure | at |" in done.stdout


@pytest.mark.slow
def test_the_budget_ends_a_section_that_does_not_end(tmp_path: Path) -> None:
    code = (
        "import sys, time; from experiments.gpu import run as gpu_check; "
        "gpu_check.SECTIONS = {'waits': lambda check: (setattr(check, 'section', 'waits'), time.sleep(600))}; "
        f"sys.exit(gpu_check.main(['--dry', '--budget', '2', '--out', {str(tmp_path)!r}]))"
    )
    start = time.monotonic()
    done = processes.run("-c", code, cwd=processes.ROOT, env={"TRITON_INTERPRET": "1"})
    assert done.returncode == 1
    assert time.monotonic() - start < 300
    (found,) = verdicts(tmp_path)
    assert (found["verdict"], found["section"]) == ("FAIL", "waits")
    assert found["name"] == "the section was running when the budget ended"


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return Check(torch.device("cpu"), True, tmp_path / gpu_check.FILE, 600.0, {"environment": {}})


def test_a_section_that_raises_is_a_verdict_and_the_next_one_runs(check: Check, tmp_path: Path) -> None:
    def raises(check: Check) -> None:
        raise RuntimeError("planted,\nin two lines")

    def passes(check: Check) -> None:
        check.say(True, "runs")

    check.run([raises, passes])
    assert [(v["verdict"], v["section"]) for v in verdicts(tmp_path)] == [("FAIL", "raises"), ("PASS", "passes")]
    assert check.verdicts[0].figure == "RuntimeError: planted, in two lines"
    assert check.failed() == 1
    assert check.table().splitlines()[2].startswith("| FAIL | raises |")


def test_without_time_a_section_is_skipped(check: Check) -> None:
    check.budget = 0.0
    check.run([kernels.parity])
    assert [(v.verdict, v.figure) for v in check.verdicts] == [("SKIP", "no time left")]


def one_place_off(buckets: Any) -> None:
    backends.REFERENCE.step(buckets)
    for bucket in buckets:
        for p in bucket.params:
            if p.numel():
                p.view(-1)[-1:].copy_(torch.nextafter(p.view(-1)[-1:].float(), torch.tensor(torch.inf)))


def loses_nan(buckets: Any) -> None:
    backends.REFERENCE.step(buckets)
    for bucket in buckets:
        for p in bucket.params:
            p.nan_to_num_(nan=0.0)


def writes_beside(buckets: Any) -> None:
    backends.REFERENCE.step(buckets)
    for bucket in buckets:
        for p in bucket.params:
            if p.dim() == 1 and p.storage_offset():
                torch.as_strided(p, (1,), (1,), p.storage_offset() - 1).zero_()


@pytest.mark.parametrize(
    ("fault", "section"),
    [(one_place_off, "parity"), (one_place_off, "layouts"), (loses_nan, "specials"), (writes_beside, "layouts")],
)
def test_a_wrong_kernel_fails(fault: Any, section: str, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition in place of the kernel passes, with a fault it does not."""
    for step, failed in ((backends.REFERENCE.step, 0), (fault, 1)):
        monkeypatch.setattr(kernels, "TRITON", backends.TRITON._replace(step=step))
        check.verdicts.clear()
        with gpu_check._as_on_a_gpu():
            check.run([gpu_check.SECTIONS[section]])
        fused = [v for v in check.verdicts if "foreach" not in v.name]
        assert min(sum(v.verdict == "FAIL" for v in fused), 1) == failed, check.table()


def test_a_missing_gpu_and_a_missing_interpreter_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for arguments, said in (([], "torch finds no GPU here"), (["--dry"], "set TRITON_INTERPRET=1")):
        with pytest.raises(SystemExit) as ended:
            gpu_check.main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
