"""The notebook: it runs from a clone, and its kept outputs are those of a real run, without a path of its machine."""

import re
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_hour.ipynb"
STEPS = 16


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: Any) -> str:
    """Return what all cells print."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs)


def figures(notebook: Any) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.timeout(1200)  # launches, one after the other
def test_it_runs_from_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps and seeds, in a folder of its own: every cell runs, and shows what the kept notebook shows."""
    pytest.importorskip("ipykernel", reason="ipykernel wants Python 3.11")
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("adopt_hf", "examples"):
        (clone / name).symlink_to(ROOT / name)
    monkeypatch.setenv("FIRST_HOUR_STEPS", str(STEPS))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    notebook = read()
    for cell in code_cells(notebook):
        cell.source = cell.source.replace("--seeds 2", "--seeds 1")  # two launches less
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(clone)}})
    client.execute()
    said = printed(notebook)
    assert f"step {STEPS}: validation loss" in said
    assert "adopt/clipped" in said
    assert "runs/first_hour/compare/report.html" in said
    assert f"runs/first_hour/adamw-adopt/checkpoint-{STEPS // 2} has the state of ADOPT" in said
    assert "exit code 2" in said
    assert str(tmp_path) not in said
    assert figures(notebook) == figures(read()) > 0
    assert (clone / "runs" / "first_hour" / "adamw-adopt" / f"checkpoint-{STEPS}").is_dir()
    assert len(list((clone / "runs" / "first_hour" / "compare" / "runs").iterdir())) == 2


def test_the_kept_outputs_are_of_one_run_without_errors() -> None:
    notebook = read()
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert figures(notebook) >= 2


def test_no_path_of_a_machine_is_in_it() -> None:
    text = nbformat.writes(read())
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|usr|opt)/", text)


def test_cells_are_short_and_links_lead_somewhere() -> None:
    notebook = read()
    lengths = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert max(lengths[1:]) <= 12
    assert lengths[0] <= 45  # the helpers
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(((?!https?:|#)[^)#]+)", cell.source):
                assert (NOTEBOOK.parent / link).exists(), link
