"""The golden checkpoints of ZeRO: those that two processes wrote, and a universal one made of them."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.golden import files
from tests.golden.cases import HALF
from tests.golden.zero_job import RANKS, UNIVERSAL
from tests.processes.conftest import run, torchrun

NAME = "zero"
FOLDER = files.FOLDER / "zero_files"
JOB = Path(__file__).parent / "zero_job.py"


def launch(what: str, processes: int, folder: Path, out: Path) -> dict[str, Any]:
    """Return what the processes of a job have found, by process."""
    torchrun(processes, str(JOB), what, folder, out, forked=True)
    return {f"rank {r}": json.loads((out / f"rank{r}.json").read_text("utf-8")) for r in range(processes)}


def write() -> None:
    """Write the golden file: what an uninterrupted run of today gives."""
    with TemporaryDirectory() as folder:
        files.write(NAME, launch("write", RANKS, Path(folder) / "checkpoints", Path(folder)))


def write_files() -> None:
    """Write the checkpoints."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with TemporaryDirectory() as folder:
        launch("write", RANKS, FOLDER, Path(folder))
    tag = f"global_step{HALF}"
    universal = FOLDER / "universal"
    run(
        *("-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", 1, "--num_merge_workers", 1),
        *("--input_folder", FOLDER / UNIVERSAL / tag, "--output_folder", universal / f"{tag}_universal"),
    )
