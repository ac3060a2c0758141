"""`make test-frameworks`: what its rows must say, and that the page shows what was run. (Its jobs are not run here.)

- each job has a kept row that is as expected, of the version that would be installed, with the lines of the job;
- every trainer of the installed TRL is in the row of TRL's trainers;
- a record of another optimizer, other numbers, other steps or another resumed run does not pass;
- the hook writes down each step of each optimizer.
"""

import copy
import importlib.metadata
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import adopt_hf
from experiments.frameworks import excerpts, expected, material, run
from experiments.frameworks.expected import ADAMW, ADOPTW, Expected
from experiments.frameworks.table import ENVIRONMENTS, JOBS
from experiments.harness import runs

ROWS = {row["job"]: row for row in runs.lines(run.ROWS)}
RECORD: dict[str, Any] = {
    "class": ADOPTW,
    "groups": [
        {"betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": decay, "tensors": tensors}
        for decay, tensors in ((0.1, 4), (0.0, 2), (0.3, 0))
    ],
    "steps": [[1.0, "a"], [2.0, "b"], [3.0, "c"], [4.0, "d"]],
}
RESUMED = {**RECORD, "steps": RECORD["steps"][2:]}


# -- the kept rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_a_row_of_its_lines(name: str) -> None:
    """If this fails: `python -m experiments frameworks NAME`, and `make docs-numbers`."""
    row = ROWS[name]
    assert row["lines"] == excerpts.lines(name)
    assert row["result"] in run.AS_EXPECTED
    if not JOBS[name].read:
        assert row["version"] == ENVIRONMENTS[JOBS[name].environment].package.partition("==")[2]


def test_no_row_is_of_a_job_that_is_gone() -> None:
    assert ROWS.keys() == JOBS.keys()
    assert {job.environment for job in JOBS.values()} - {""} == ENVIRONMENTS.keys()
    assert {path.name for path in excerpts.JOBS.iterdir() if path.is_dir()} == JOBS.keys()


def test_every_trainer_of_trl_has_a_case() -> None:
    version = importlib.metadata.version("trl")
    if version != ROWS["trl_trainers"]["version"]:
        pytest.skip(f"TRL {version} is installed, and the rows are of another version")
    (init,) = importlib.util.find_spec("trl").submodule_search_locations  # type: ignore[union-attr]
    found = set()
    for path in Path(init).rglob("*_trainer.py"):
        found |= set(re.findall(r"^class (\w+Trainer)\(", path.read_text(encoding="utf-8"), re.MULTILINE))
    cases = {name.rpartition(".")[2]: case["result"] for name, case in ROWS["trl_trainers"]["cases"].items()}
    assert found - {"_BaseTrainer"} == cases.keys()
    assert set(cases.values()) <= {"steps", "not run"}
    assert sum(result == "steps" for result in cases.values()) > len(cases) / 2


# -- the records of a run ----------------------------------------------------------------------------------------------


def test_what_is_as_expected_passes() -> None:
    assert expected.differences(Expected(), [RECORD], [RESUMED]) == []
    assert expected.differences(Expected(resumes="no checkpoints"), [RECORD], []) == []
    assert expected.differences(Expected(processes=2), [RECORD] * 2, [RESUMED] * 2) == []


def changed(path: tuple[Any, ...], value: Any, record: dict[str, Any] = RECORD) -> dict[str, Any]:
    """Return a record with another value at `path`."""
    copied = copy.deepcopy(record)
    at: Any = copied
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return copied


@pytest.mark.parametrize(
    ("whole", "resumed", "message"),
    [
        ([], [RESUMED], "0 optimizers have stepped instead of 1: none"),
        ([RECORD, changed(("class",), ADAMW)], [RESUMED], "2 optimizers have stepped instead of 1: .*AdamW"),
        ([changed(("class",), ADAMW)], [RESUMED], f"the optimizer: {ADAMW} instead of {ADOPTW}"),
        ([changed(("groups", 1, "betas"), [0.9, 0.999])], [RESUMED], r"betas: .*0.999\)\] instead of"),
        ([changed(("groups", 0, "eps"), 1e-8)], [RESUMED], "eps: .*1e-08.* instead of"),
        (
            [changed(("groups", 1, "weight_decay"), 0.1)],
            [RESUMED],
            r"weight decay: \[0.1, 0.1\] instead of \[0.1, 0.0\]",
        ),
        ([changed(("steps",), RECORD["steps"][:3])], [RESUMED], r"the steps: \[1, 2, 3\] instead of \[1, 2, 3, 4\]"),
        ([RECORD], [], "after the checkpoint: 0 optimizers have stepped"),
        ([RECORD], [RECORD], r"after the checkpoint: the steps: \[1, 2, 3, 4\] instead of \[3, 4\]"),
        ([RECORD], [changed(("steps", 1, 1), "e", RESUMED)], "the resumed run ends with other parameters"),
    ],
)
def test_what_is_not_as_expected_is_named(whole: list[Any], resumed: list[Any], message: str) -> None:
    (found,) = expected.differences(Expected(), whole, resumed)
    assert re.match(message, found)


def test_the_hook_writes_each_step_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPPED", str(tmp_path))
    finders = list(sys.meta_path)
    spec = importlib.util.spec_from_file_location("watch", run.WATCH / "sitecustomize.py")
    watch = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(watch)  # type: ignore[union-attr]
    sys.meta_path[:] = finders
    handle = register_optimizer_step_post_hook(watch.note)
    try:
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = adopt_hf.ADOPTW([weight], lr=0.1)
        for _ in range(2):
            weight.grad = torch.ones(3)
            optimizer.step()
        torch.optim.SGD([weight], lr=0.1).step()
    finally:
        handle.remove()
    adopt, sgd = expected.records(tmp_path)
    assert (adopt["class"], sgd["class"]) == (ADOPTW, "torch.optim.sgd.SGD")
    assert [count for count, _ in adopt["steps"]] == [1, 2]
    assert adopt["steps"][0][1] != adopt["steps"][1][1] != sgd["steps"][0][1]
    assert adopt["groups"][0]["tensors"] == 1


# -- the command -------------------------------------------------------------------------------------------------------


def test_an_unknown_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["nothing"])
    assert "there is no job 'nothing': name some of run_clm, " in capsys.readouterr().err


def test_a_job_that_was_read_adds_its_row(tmp_path: Path) -> None:
    results = tmp_path / "rows.jsonl"
    assert run.main(["kohya", "--results", str(results)]) == 0
    (row,) = runs.lines(results)
    assert (row["job"], row["result"], row["lines"]) == ("kohya", "read", excerpts.lines("kohya"))


def test_a_series_tells_each_case(tmp_path: Path) -> None:
    told = {"cases": {"good": "", "bad": "ValueError: no", "lazy": ""}, "not run": {"far": "it needs a server"}}
    (tmp_path / "cases.json").write_text(json.dumps(told))
    for name, records in {"whole": [RECORD], "resumed": [RESUMED]}.items():
        folder = tmp_path / "good" / name
        folder.mkdir(parents=True)
        for i, record in enumerate(records):
            (folder / f"{i}.json").write_text(json.dumps(record))
    row = run._series(JOBS["trl_trainers"], tmp_path)
    assert {name: case["result"] for name, case in row["cases"].items()} == {
        **{"good": "steps", "bad": "fails", "lazy": "fails"},
        "far": "not run",
    }
    assert (row["result"], row["reasons"]) == ("fails", ["bad", "lazy"])


def test_lines_that_are_not_marked_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excerpts, "JOBS", tmp_path)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "job.sh").write_text("# page:\npython train.py\n")
    with pytest.raises(ValueError, match=f"no file of {tmp_path / 'job'} has lines between"):
        excerpts.lines("job")
    (tmp_path / "job" / "job.sh").write_text('  # page:\n  python train.py "$@"\n  # end of page\n')
    assert excerpts.blocks("job") == "```bash\npython train.py\n```"


def test_the_records_have_all_forms() -> None:
    forms = material.conversations()
    assert all(len(rows) == 16 for rows in forms.values())
    trainers = (excerpts.JOBS / "trl_trainers" / "trainers.py").read_text(encoding="utf-8")
    assert set(re.findall(r'Case\(\s*"(\w+)"', trainers)) <= forms.keys()
