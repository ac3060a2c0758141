"""Files that an earlier commit wrote are loaded, and the run goes on with the bits of the uninterrupted one."""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from adopt_hf import ADOPTW
from adopt_hf.integrations.checkpoints import check_layout, check_optimizer, last_complete, missing
from tests.golden import files, saved, trajectories
from tests.golden.cases import SAVED, Case


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = files.read(trajectories.NAME)
    return found


@pytest.fixture(scope="module")
def golden() -> Any:
    return files.read(saved.NAME)


@pytest.mark.parametrize("case", SAVED, ids=lambda case: case.name)
def test_a_saved_state_goes_on(case: Case, rows: dict[str, dict[str, list[str]]]) -> None:
    files.check(rows[case.name]["reference"], saved.resume_state(case))


@pytest.mark.parametrize("case", SAVED, ids=lambda case: case.name)
def test_a_state_is_written_as_it_was(case: Case) -> None:
    """The keys, the numbers and the tensors, so that an earlier version loads what is written now."""
    files.check(*saved.contents(case))


@pytest.mark.parametrize("name", saved.PICKLED)
def test_a_pickle_goes_on(name: str, rows: dict[str, dict[str, list[str]]]) -> None:
    files.check(rows[name]["reference"], saved.resume_pickle(saved.case_of(name)))


def test_a_state_is_loaded_into_another_form(golden: Any) -> None:
    files.check(golden["conversions"], saved.conversions())


def test_a_checkpoint_of_the_trainer_goes_on(golden: Any, tmp_path: Path) -> None:
    files.check(golden["the Trainer's run"], saved.resume_checkpoint(tmp_path))


def test_a_complete_checkpoint_is_known_as_such() -> None:
    assert missing(saved.CHECKPOINT) is None
    assert last_complete(saved.FOLDER) == (saved.CHECKPOINT, [])
    check_layout(saved.CHECKPOINT)
    check_optimizer(saved.CHECKPOINT, ADOPTW)
    with pytest.raises(ValueError, match=r"state in .* is that of ADOPT, and the optimizer is SGD"):
        check_optimizer(saved.CHECKPOINT, torch.optim.SGD)


@pytest.mark.parametrize("path", saved.arguments_files(), ids=lambda path: path.name)
def test_training_arguments_mean_what_they_meant(path: Path, golden: Any) -> None:
    files.check(golden["training arguments"][path.name], saved.kwargs_of(path))


@pytest.mark.parametrize("path", saved.arguments_files(), ids=lambda path: path.name)
def test_training_arguments_import_the_package_themselves(path: Path) -> None:
    """They name a function of this package, which a process without `import adopt_hf` imports in order to load them."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        named = [argument for _, argument, _ in pickletools.genops(archive.read(name))]
    assert "adopt_hf.integrations.trainer _optimizer_name" in named
