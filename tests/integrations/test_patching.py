"""Rows of patches: which function fits one, what replaces it, and what takes it back."""

import ast
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import adopt_hf
from adopt_hf import integrations
from adopt_hf.commands import env
from adopt_hf.integrations import patching
from adopt_hf.integrations.patching import Package, Patch

PACKAGE = Path(adopt_hf.__file__).parent
ROWS = [patch for patched in integrations.PATCHED.values() for patch in patched.patches]
RELIES = "which adopt_hf relies on: update adopt_hf, or install an earlier theirs"
THEIRS = """
def train(model, lr, *, seed=0):
    return [model, lr, seed]

class Base:
    def load(self, path):
        return ["load", path]

class Engine(Base):
    @staticmethod
    def make(args, model=None):
        return [args, model]

    @classmethod
    def of(cls, args, model=None):
        return [args, model]

value = 3
"""


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    module = ModuleType("theirs")
    exec(THEIRS, vars(module))
    monkeypatch.setitem(sys.modules, "theirs", module)
    return module


def noted(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return ["ours", *original(*args, **kwargs)]


def exact(original: Callable[..., Any], args: Any, model: Any = None) -> Any:
    return ["ours", *original(args, model)]


def row(name: str = "train", takes: str = "model", around: Callable[..., Any] = noted, **more: Any) -> Patch:
    return Patch(f"theirs:{name}", around, takes, issue="an issue", why="a reason", remove_when="it is gone", **more)


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        (row(takes=""), None),
        (row(takes="model"), None),
        (row(takes="model, lr"), None),
        (row(takes="*, seed"), None),
        (row(takes="model, *, seed"), None),
        (row(takes="lr"), "it takes (model, lr, seed) and not (lr)"),
        (row(takes="model, seed"), "it takes (model, lr, seed) and not (model, seed)"),
        (row(takes="model, *, gone"), "it takes (model, lr, seed) and not (model, *, gone)"),
        (row(takes="model, lr", around=exact), "it takes (model, lr, seed) and not (model, lr)"),
        (row("Engine.make", "args, model", exact), None),
        (row("Engine.make", "self, args"), "it takes (args, model) and not (self, args)"),
        (row("Engine.of", "args, model", exact), "it takes (cls, args, model) and not (args, model)"),
        (row("Engine.load", "self, path"), None),
        (row("Engine.gone"), "there is no such function"),
        (row("Gone.load"), "there is no such function"),
        (row("value"), "there is no such function"),
    ],
)
def test_which_function_fits(patch: Patch, why: str | None, theirs: Any) -> None:
    assert patch.mismatch() == why
    assert patching.changed([patch]) == (patch.name if why else None)


def test_of_a_module_that_is_not_imported_nothing_fits() -> None:
    assert row().mismatch() == "there is no such function"
    assert not row().is_installed()


@pytest.mark.parametrize(
    ("patch", "call", "result"),
    [
        (row(), lambda theirs: theirs.train("m", 1), ["m", 1, 0]),
        (row("Engine.make", "args, model", exact), lambda theirs: theirs.Engine.make("a"), ["a", None]),
        (row("Engine.make", "args, model", exact), lambda theirs: theirs.Engine().make("a", "m"), ["a", "m"]),
        (row("Engine.load", "self, path"), lambda theirs: theirs.Engine().load("p"), ["load", "p"]),
        (row("Base.load", "self, path"), lambda theirs: theirs.Engine().load("p"), ["load", "p"]),
    ],
)
def test_twice_is_once_and_it_can_be_taken_back(patch: Patch, call: Any, result: list[Any], theirs: Any) -> None:
    owners = (theirs, theirs.Engine, theirs.Base)
    before = [dict(vars(owner)) for owner in owners]
    assert call(theirs) == result
    for _ in range(2):
        patching.install([patch])
        assert patch.is_installed()
        assert patch.mismatch() is None
        assert call(theirs) == ["ours", *result]
    for _ in range(2):
        patching.uninstall([patch])
        assert not patch.is_installed()
    assert [dict(vars(owner)) for owner in owners] == before


def test_a_wrapper_of_another_library_is_not_taken_away(theirs: Any) -> None:
    patch = row()
    patching.install([patch])
    ours = theirs.train

    @functools.wraps(ours)
    def another(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    theirs.train = another
    patching.install([patch])
    assert theirs.train is another
    with pytest.raises(RuntimeError, match=r"wrapped theirs\.train since"):
        patching.uninstall([patch])
    theirs.train = ours
    patching.uninstall([patch])
    assert not patch.is_installed()


def test_what_does_not_fit_stays_and_refuses(theirs: Any) -> None:
    rows = [row(), row("Engine.make", "args", asks=lambda argument: argument == "a"), row("Engine.gone", asks=bool)]
    patching.install(rows, "too new")
    assert [patch.is_installed() for patch in rows] == [False, True, False]
    with pytest.raises(ImportError, match="too new"):
        theirs.Engine.make("a")
    with pytest.raises(ImportError, match="too new"):
        theirs.Engine.make("b", model="a")
    assert theirs.Engine.make("b") == ["b", None]
    patching.uninstall(rows)
    assert theirs.Engine.make("a") == ["a", None]


def test_an_optional_patch_is_left_out(theirs: Any) -> None:
    rows = [row(takes="model, gone", optional=True), row("Engine.load", "self, path")]
    assert patching.changed(rows) is None
    patching.install(rows)
    assert [patch.is_installed() for patch in rows] == [False, True]


def test_a_patch_that_is_not_needed_is_left_out(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the function has changed: a version that has the remedy need not have the old function."""
    rows = (row(takes="gone", unneeded=lambda: True), row("Engine.load", "self, path", unneeded=lambda: True))
    assert patching.changed(rows) is None
    patching.install(rows)
    assert [patch.is_installed() for patch in rows] == [False, False]
    monkeypatch.setattr(env, "version", lambda name: "1.0")
    assert env._patches("theirs", integrations.Patched(rows, lambda: None)) == [
        "  theirs:train: not replaced (this version does not need it)",
        "  theirs:Engine.load: not replaced (this version does not need it)",
    ]


@pytest.mark.parametrize(
    ("installed", "patch", "reason"),
    [
        ("2.0", row(), None),
        (
            "1.9",
            row(takes="gone"),
            "ADOPT needs theirs 2.0 or later, and 1.9 is installed: pip install --upgrade theirs",
        ),
        ("2.1", row(takes="gone"), f"theirs 2.1 has changed theirs.train, {RELIES}"),
        ("2.1", row("Engine.gone"), f"theirs 2.1 has changed theirs.Engine.gone, {RELIES}"),
        (None, row(takes="gone"), f"theirs of unknown version has changed theirs.train, {RELIES}"),
    ],
)
def test_why_a_package_does_not_fit(installed: str | None, patch: Patch, reason: str | None, theirs: Any) -> None:
    if installed is not None:
        theirs.__version__ = installed
    assert Package("theirs", "2.0", "ADOPT", (patch,)).mismatch() == reason


# -- the rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", ROWS, ids=lambda patch: patch.target)
def test_every_row_fits_and_is_installed(patch: Patch) -> None:
    importlib.import_module(patch.module)
    assert patch.mismatch() is None
    assert patch.is_installed()


@pytest.mark.parametrize("patch", ROWS, ids=lambda patch: patch.target)
def test_every_row_is_explained_in_whole_sentences(patch: Patch) -> None:
    for text in (patch.issue, patch.why, patch.remove_when):
        assert text[0].isupper() or text.startswith(("transformers", "torch", "`", "bitsandbytes")), text
        assert text.endswith("."), text
        assert "|" not in text, "it is a cell of a table"


def test_no_function_has_two_rows() -> None:
    assert len({patch.target for patch in ROWS}) == len(ROWS)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_rows_stand_in_files_of_their_own() -> None:
    """And all of them are in the table that `env` and the docs show."""
    found: dict[str, int] = {}
    for name, tree in trees():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        rows = sum(isinstance(call.func, ast.Name) and call.func.id == "Patch" for call in calls)
        if rows:
            found[name] = rows
    files = ("accelerate", "ddp", "deepspeed/patches", "guard", "transformers/patches")
    assert sorted(found) == [f"integrations/{name}.py" for name in files]
    assert sum(found.values()) == len(ROWS)


def is_inside(node: ast.AST) -> bool:
    """Return whether a node imports from a submodule of DeepSpeed, or reads a private attribute of something else."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").startswith("deepspeed.")
    if not isinstance(node, ast.Attribute) or ast.unparse(node.value) == "self":
        return False
    return node.attr.startswith("_") and not node.attr.startswith("__")


def test_the_inside_of_deepspeed_is_read_in_one_file() -> None:
    file = "integrations/deepspeed/internals.py"
    wing = [(name, tree) for name, tree in trees() if name.startswith("integrations/deepspeed/")]
    assert [name for name, tree in wing if any(map(is_inside, ast.walk(tree)))] == [file]
    assert [name for name, tree in trees() if "from deepspeed." in ast.unparse(tree)] == [file]


# -- python -m adopt_hf env --------------------------------------------------------------------------------------------


def test_the_environment_lists_them() -> None:
    text = env.report()
    for patch in ROWS:
        assert f"\n  {patch.target}: replaced" in text


def test_the_environment_says_why_not(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (row(), row("Engine.make", "gone", asks=bool), row("Engine.gone"))
    patching.install(rows, "theirs is too new")
    monkeypatch.setattr(env, "version", lambda name: "1.0")
    assert env._patches("theirs", integrations.Patched(rows, lambda: "theirs is too new")) == [
        "  theirs is too new",
        "  theirs:train: not replaced",
        "  theirs:Engine.make: replaced by an error, for ADOPT",
        "  theirs:Engine.gone: not replaced (there is no such function)",
    ]


def test_the_environment_without_a_package() -> None:
    assert env._patches("not_a_package", integrations.Patched((), lambda: None)) == ["  not_a_package is not installed"]
