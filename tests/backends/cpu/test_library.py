"""The choice of a library: the wheel's first, the compiler's where none fits, and none that computes wrong numbers."""

import ctypes
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adopt_hf.backends.cpu import answers, compiler, library, prebuilt

WHEEL = Path("site-packages/adopt_hf/backends/cpu/kernel-0-0.so")


class Made:
    """A library with a function that says its instructions."""

    def __init__(self) -> None:
        self.adopt_step = SimpleNamespace()
        self.adopt_instructions: Any = lambda: b"AVX2 and FMA"


def missing(*_: object) -> Any:
    raise RuntimeError("there is none")


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> tuple[Made, Made]:
    """The library of the wheel and that of the compiler, both right."""
    of_wheel, compiled = Made(), Made()
    monkeypatch.setattr(prebuilt, "load", lambda: (of_wheel, WHEEL))
    monkeypatch.setattr(compiler, "load", lambda path: compiled)
    monkeypatch.setattr(compiler, "command", lambda: ["/usr/bin/cc", "-m64"])
    monkeypatch.setattr(answers, "wrong", lambda library: [])
    monkeypatch.setattr(library, "declared", lambda library: library)
    return of_wheel, compiled


def find() -> library.Found:
    library.find.cache_clear()
    try:
        return library.find()
    finally:
        library.find.cache_clear()


def test_the_wheels_is_first(libraries: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "load", missing)
    found = find()
    assert found.library is libraries[0]
    assert found.origin == f"from the wheel, with AVX2 and FMA: {WHEEL}"


def test_without_one_that_fits_the_compiler_is_next(
    libraries: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prebuilt, "load", missing)
    found = find()
    assert found.library is libraries[1]
    assert found.origin == "compiled by /usr/bin/cc -m64, with -march=native. there is none"


def test_the_reasons_of_both_are_given(libraries: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prebuilt, "load", missing)

    def no_compiler(path: Path) -> ctypes.CDLL:
        raise RuntimeError("no C compiler was found. Install one")

    monkeypatch.setattr(compiler, "load", no_compiler)
    with pytest.raises(RuntimeError, match=r"^no C compiler was found\. Install one\. there is none$"):
        find()


def test_a_wheels_library_that_is_wrong_is_not_used_and_warned_of(
    libraries: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {id(libraries[0]): ["float16"]}
    monkeypatch.setattr(answers, "wrong", lambda library: wrong.get(id(library), []))
    assert find().library is libraries[1]
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert record.name == "adopt_hf"
    assert f"{WHEEL}, which came with adopt_hf, computes wrong numbers here for float16, and is not" in record.message


def test_a_compilers_library_that_is_wrong_is_an_error(
    libraries: tuple[Made, Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prebuilt, "load", missing)
    monkeypatch.setattr(answers, "wrong", lambda library: ["float32", "float64"])
    with pytest.raises(RuntimeError, match=r"cc -m64 compiles kernel\.c to .* float32, float64\. Set CC"):
        find()
