"""The rules of prose that a program can check: the first word of a docstring, and words with a plainer replacement.

They hold in the docstrings, comments and messages of the files and folders in CLEAN.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_YET = ("processes", "__pycache__", Path(__file__).name)  # of tests/: kept results have the key "anew"
CLEAN = (  # add a file or folder as soon as it follows the rules
    *("adopt_hf", "examples", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *(f"tests/{path.name}" for path in sorted(ROOT.glob("tests/*")) if path.name not in NOT_YET),
)
SUFFIXES = (".py", ".c", ".h", ".md")
QUESTIONS = ("What", "Which", "How", "Where", "Who", "Whoever")  # a docstring begins with a verb or a noun
INSTEAD = {
    "somebody": "the user, the caller, another process",
    "nobody": "no user, no process",
    "everybody": "all users, all processes",
    "whoever": "users who",
    "anew": "again, new",
    "in the place of": "instead of",
    "where need be": "if necessary",
    "left alone": "unchanged",
    "hangs on": "depends on",
}
GAP = r"[\s#/]+"  # between two words, which may stand on two lines of a comment
BANNED = re.compile(rf"\b({'|'.join(INSTEAD).replace(' ', GAP)})\b", re.IGNORECASE)


def files(name: str) -> list[Path]:
    """Return the files of a folder, or the file of this name."""
    top = ROOT / name
    found = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.suffix in SUFFIXES)
    return [path for path in found if path != Path(__file__)]


def questions(source: str) -> list[str]:
    """Return the first lines of the docstrings that begin with a question word."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first, *_ = (ast.get_docstring(node) or "").split("\n")
            found += [first] if first.split(" ")[0] in QUESTIONS else []
    return found


def banned(source: str) -> list[str]:
    """Return the words of a file that we do not use, each with what to write instead."""
    words = [" ".join(re.split(GAP, match.group().lower())) for match in BANNED.finditer(source)]
    return [f"{word!r}: write {INSTEAD[word]}" for word in words]


@pytest.mark.parametrize("name", CLEAN)
def test_the_prose_follows_the_rules(name: str) -> None:
    found = {}
    for file in files(name):
        source = file.read_text()
        if wrong := [*banned(source), *(questions(source) if file.suffix == ".py" else ())]:
            found[str(file.relative_to(ROOT))] = wrong
    assert files(name)
    assert found == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ('"""What one step does."""', 1),
        ('class A:\n    """How it is kept.\n\n    More.\n    """', 1),
        ('def f():\n    """Return what was given."""', 0),
        ('async def f():\n    """Where it lies."""', 1),
        ("x = 1  # What it is", 0),
    ],
)
def test_a_docstring_that_begins_with_a_question_is_found(source: str, count: int) -> None:
    assert len(questions(source)) == count


@pytest.mark.parametrize("word", INSTEAD)
def test_a_banned_word_is_found(word: str) -> None:
    assert banned(f"# {word.capitalize()}, of course") == banned(f"raise ValueError('it is {word}')")
    assert banned(f'"""Some text\n{word}."""') == [f"{word!r}: write {INSTEAD[word]}"]
    assert banned("# a comment that ends in the\n    # place of one") == ["'in the place of': write instead of"]
    assert banned("manewer") == []
