"""Nothing is read from a cache folder that another user could have put there; what is created is the user's own."""

import os
import stat
from pathlib import Path

import pytest

from adopt_hf.backends import cache

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes of files")
ANOTHER_USER = 65534
as_root = pytest.mark.skipif(getattr(os, "geteuid", int)() != 0, reason="only root can give files to another user")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, in a folder that is the user's."""
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    monkeypatch.setenv("ADOPT_HF_CACHE", str(home / "cache"))
    return home / "cache"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_created_for_the_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "a" / "b" / "cache"
    monkeypatch.setenv("ADOPT_HF_CACHE", str(deep))
    before = os.umask(0)
    try:
        assert cache.folder() == deep
    finally:
        os.umask(before)
    assert [mode(path) for path in (deep, deep.parent, deep.parent.parent)] == [0o700] * 3


@pytest.mark.parametrize("named", ["cache", "./cache", "~/cache", ""])
def test_a_relative_xdg_folder_is_ignored(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloned repository could bring one."""
    monkeypatch.delenv("ADOPT_HF_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.chdir(tmp_path)
    assert cache.location() == tmp_path / "home" / ".cache" / "adopt_hf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache.location() == tmp_path / "other" / "adopt_hf"


def test_a_folder_of_ones_own_is_trusted(folder: Path) -> None:
    assert cache.folder() == folder
    cache.write(folder / "triton-a", b"text", 0o666)
    assert mode(folder / "triton-a") == 0o644
    os.close(cache.open_trusted(folder / "triton-a"))
    assert [path.name for path in folder.iterdir()] == ["triton-a"]


def test_a_folder_below_tmp_is_trusted(folder: Path) -> None:
    """Others can write to it, and with the sticky bit they cannot replace what is there."""
    folder.parent.chmod(0o1777)
    assert cache.folder() == folder


@pytest.mark.parametrize("rights", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_a_folder_that_others_can_write_to_is_not(rights: int, folder: Path) -> None:
    folder.mkdir()
    folder.chmod(rights)
    with pytest.raises(RuntimeError, match=rf"other users can write to {folder} \(chmod go-w"):
        cache.folder()


@pytest.mark.parametrize("rights", [0o777, 0o775])
def test_nor_one_that_others_can_replace(rights: int, folder: Path) -> None:
    cache.folder()
    folder.parent.chmod(rights)
    with pytest.raises(RuntimeError, match=f"other users can write to {folder.parent} "):
        cache.folder()


@as_root
def test_nor_one_of_another_user(folder: Path) -> None:
    cache.folder()
    os.chown(folder, ANOTHER_USER, ANOTHER_USER)
    with pytest.raises(RuntimeError, match=f"{folder} belongs to user {ANOTHER_USER}"):
        cache.folder()
    os.chown(folder, 0, 0)
    os.chown(folder.parent, ANOTHER_USER, ANOTHER_USER)
    with pytest.raises(RuntimeError, match=f"{folder.parent} belongs to user {ANOTHER_USER}"):
        cache.folder()


def test_links_are_followed_and_what_they_lead_through_counts(folder: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    (shared / "mine").mkdir(parents=True)
    folder.symlink_to(Path("..", "..", tmp_path.name, "shared", "mine"))
    assert cache.folder() == folder
    shared.chmod(0o777)
    with pytest.raises(RuntimeError, match=f"other users can write to {shared} "):
        cache.folder()


@as_root
def test_a_link_of_another_user_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """In /tmp anybody can make one, to a folder of the user that holds what they want to be loaded."""
    (tmp_path / "clone").mkdir()
    folder.symlink_to(tmp_path / "clone")
    assert cache.folder() == folder
    os.chown(folder, ANOTHER_USER, ANOTHER_USER, follow_symlinks=False)
    with pytest.raises(RuntimeError, match=f"{folder} belongs to user {ANOTHER_USER}"):
        cache.folder()


def test_links_in_a_circle_and_to_nowhere(folder: Path) -> None:
    folder.symlink_to(folder)
    assert "too many symbolic links" in str(cache.why_not_trusted(folder))
    with pytest.raises(RuntimeError, match="cannot be created"):
        cache.folder()


def test_a_file_instead_of_a_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_text("")
    with pytest.raises(RuntimeError, match=rf"{folder} cannot be created: .*Set ADOPT_HF_CACHE to another folder"):
        cache.folder()
    monkeypatch.setenv("ADOPT_HF_CACHE", str(folder / "below"))
    with pytest.raises(RuntimeError, match="cannot be created"):
        cache.folder()


@pytest.mark.parametrize("what", ["for others", "link", "fifo", "folder"])
def test_a_file_that_cannot_be_trusted_is_not_opened(what: str, folder: Path) -> None:
    path = cache.folder() / "triton-a"
    if what == "link":
        path.symlink_to("/etc/passwd")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.write_text("")
        path.chmod(0o666)
    with pytest.raises((RuntimeError, OSError)):
        cache.open_trusted(path)


@as_root
def test_nor_a_file_of_another_user(folder: Path) -> None:
    path = cache.folder() / "triton-a"
    cache.write(path, b"", 0o644)
    os.chown(path, ANOTHER_USER, ANOTHER_USER)
    with pytest.raises(RuntimeError, match=f"belongs to user {ANOTHER_USER}"):
        cache.open_trusted(path)
