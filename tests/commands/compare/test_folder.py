"""The output folder: it is taken for one comparison by one process, and nothing in it is overwritten."""

import json
from pathlib import Path

import pytest

from adopt_hf.commands.compare import folder as folders
from adopt_hf.commands.compare.folder import Folder
from adopt_hf.commands.compare.plan import InputError, Run
from tests.support.comparisons import PLAN


def files(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


def test_a_folder_goes_on_with_its_own_comparison_and_more_seeds(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for plan, is_new in ((PLAN, True), (PLAN, False), (PLAN._replace(seeds=4), False)):
        folder = Folder(path)
        with folder.taken(plan):
            assert folder.is_new is is_new
    assert json.loads((path / folders.PLAN).read_text())["seeds"] == 4


def test_what_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    of_another, of_others, broken, file = (tmp_path / name for name in ("another", "others", "broken", "file"))
    with Folder(of_another).taken(PLAN._replace(lrs=(1e-3,))):
        pass
    of_others.mkdir()
    (of_others / "model.bin").write_text("weights")
    broken.mkdir()
    (broken / folders.PLAN).write_text('{"command"')
    file.write_text("text")
    before = files(tmp_path)
    for path, message in (
        (of_another, "holds another comparison: lrs is '1e-3' there and .* here; write another --output"),
        (of_others, "holds 'model.bin' and no comparison"),
        (broken, "cannot be read: write another --output"),
        (file, "is a file: write a folder"),
        (file / "below", "cannot be written"),
    ):
        with pytest.raises(InputError, match=message), Folder(path).taken(PLAN):
            pass
    assert files(tmp_path) == before


def test_two_processes_do_not_share_it(tmp_path: Path) -> None:
    with (
        Folder(tmp_path).taken(PLAN),
        pytest.raises(InputError, match="is in use by another adopt-hf compare"),
        Folder(tmp_path).taken(PLAN),
    ):
        pass


def test_giving_up_removes_what_was_begun_and_nothing_that_is_finished(tmp_path: Path) -> None:
    begun, finished = Folder(tmp_path / "begun"), Folder(tmp_path / "finished")
    for folder in (begun, finished):
        with folder.taken(PLAN):
            folder.of(Run("adopt", 1e-3, 0)).mkdir(parents=True)
            if folder is finished:
                (folder.of(Run("adopt", 1e-3, 0)) / folders.DONE).write_text("{}")
            folder.give_up()
    assert not begun.path.exists()
    assert (finished.path / folders.PLAN).is_file()
    (tmp_path / "mine").mkdir()
    mine = Folder(tmp_path / "mine")
    with mine.taken(PLAN):
        mine.give_up()
    assert list(mine.path.iterdir()) == []
    again = Folder(finished.path)
    with again.taken(PLAN):
        again.give_up()
    assert (finished.path / folders.PLAN).is_file()


def test_files_are_written_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    folders.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folders.write_json(path, {"a": float("nan")})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folders.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folders.write_json(path, {"a": 2})
    assert folders.read_json(path) == {"a": 1}
    assert folders.read_json(tmp_path / "none.json") is None
