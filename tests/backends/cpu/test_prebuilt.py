"""The library of a wheel: it is loaded if it was made from the installed source, for this machine, and is whole."""

import shutil
import subprocess
from pathlib import Path

import pytest

import hatch_build
from adopt_hf.backends.cpu import prebuilt, source

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")
OF_PYTHON = {"linux": "Linux", "macosx": "Darwin", "win": "Windows"}  # platform.system(), by the tag of a wheel


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installation, whose kernel is a function that returns 42, with a library from a wheel."""
    folder = tmp_path / "cpu"
    folder.mkdir()
    monkeypatch.setattr(source, "FOLDER", folder)
    monkeypatch.setattr(source, "KERNEL", folder / "kernel.c")
    source.KERNEL.write_text("int answer(void) { return 42; }\n")
    (folder / "numbers.h").write_text("")
    library = tmp_path / "made.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source.KERNEL], check=True)
    shutil.copy(library, folder / source.library_name(library.read_bytes(), ".so"))
    return folder


def library_in(folder: Path) -> Path:
    (found,) = folder.glob("*.so")
    return found


def test_it_is_loaded_from_the_package(installed: Path) -> None:
    library, path = prebuilt.load()
    assert path == library_in(installed)
    assert library.answer() == 42


@pytest.mark.parametrize("changed", ["kernel.c", "numbers.h"])
def test_a_library_of_another_source_is_not_loaded(changed: str, installed: Path) -> None:
    (installed / changed).write_text("int answer(void) { return 43; }\n")
    with pytest.raises(RuntimeError, match=r"kernel-.* was compiled from other C files than those of this inst"):
        prebuilt.load()


def test_a_library_of_other_flags_is_not_loaded(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "FLAGS", (*source.FLAGS, "-ffast-math"))
    with pytest.raises(RuntimeError, match="was compiled from other C files"):
        prebuilt.load()


def test_a_library_that_was_cut_off_is_not_loaded(installed: Path) -> None:
    """Its head is that of a library: loading it would end the process."""
    path = library_in(installed)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RuntimeError, match=r"kernel-.* is damaged\. Install adopt_hf again"):
        prebuilt.load()


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="Linux only")
def test_a_library_for_another_machine_is_not_loaded(installed: Path) -> None:
    data = bytearray(library_in(installed).read_bytes())
    data[18] = 21
    library_in(installed).unlink()
    (installed / source.library_name(bytes(data), ".so")).write_bytes(data)
    with pytest.raises(RuntimeError, match=r"kernel-.* was compiled for ppc64 .*, and this Python runs on"):
        prebuilt.load()


def test_a_file_that_is_no_library_is_a_reason(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library_in(installed).unlink()
    (installed / source.library_name(b"no library", ".so")).write_bytes(b"no library")
    monkeypatch.setattr(prebuilt.target, "mismatch", lambda library: None)
    with pytest.raises(RuntimeError, match=r"kernel-.* cannot be loaded: "):
        prebuilt.load()


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        ("x86_64", "The wheel of adopt_hf for Linux x86_64 has a compiled kernel, and this installation has none"),
        ("riscv64", "No wheel of adopt_hf has a compiled kernel for Linux riscv64"),
    ],
)
def test_without_one_it_says_whether_a_wheel_has_one(
    machine: str, reason: str, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library_in(installed).unlink()
    monkeypatch.setattr(prebuilt.platform, "system", lambda: "Linux")
    monkeypatch.setattr(prebuilt.platform, "machine", lambda: machine)
    with pytest.raises(RuntimeError, match=reason):
        prebuilt.load()


def test_the_platforms_are_those_of_the_wheels() -> None:
    tags = [platform.tag.split(".")[0].removeprefix("many") for platform in hatch_build.PLATFORMS.values()]
    found = set()
    for tag in tags:
        system = next(name for name in OF_PYTHON if tag.startswith(name))
        machine = next(name for name in ("x86_64", "aarch64", "amd64", "arm64") if tag.endswith(name))
        found.add(f"{OF_PYTHON[system]} {machine.upper() if system == 'win' else machine}")
    assert found == set(prebuilt.PLATFORMS)
