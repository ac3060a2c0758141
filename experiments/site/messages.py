"""Every message of the package, read from its source: errors, warnings, information, and parts of them."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from experiments.harness.machine import ROOT

FILLED = "…"  # stands for what is filled in and has no name
PACKAGE = ROOT / "adopt_hf"
LEVELS = {"warning": "Warning", "info": "Information", "error": "Error of the command line", "exit": "Command line"}
TABLES = ("Hyperparameter", "Command", "Patch", "add_argument", "add_parser", "ArgumentParser", "add_argument_group")
LEAST_WORDS = 3  # of a text that is not raised or logged where it is written
WARNERS = ("_warn",)  # functions of the package that log a warning once
FORMATS = re.compile(r"(?<!%)%[-+#0-9.]*[a-z]")


class Message(NamedTuple):
    """A message: who says it, its text, and the line of code. Names in braces stand for what is filled in."""

    kind: str  # the class of an error, one of LEVELS, or "" for a part of other messages
    text: str
    file: str  # relative to the repository
    line: int


@cache
def messages(package: Path = PACKAGE) -> tuple[Message, ...]:
    """Return every message in the order of the files and lines, each text once a file."""
    found: dict[tuple[str, str], Message] = {}
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package.parent).as_posix()
        for kind, text, line in in_source(path.read_text(encoding="utf-8")):
            found.setdefault((file, text), Message(kind, text, file, line))
    return tuple(sorted(found.values(), key=lambda one: (one.file, one.line)))


def in_source(source: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, text and line of each message of a file. Errors and warnings come first."""
    tree = ast.parse(source)
    constants = {
        name: text
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        for name, text in [(node.targets[0].id, template(node.value, {}))]
        if words(text) >= LEAST_WORDS
    }
    done: set[ast.AST] = _silent(tree)
    for node in ast.walk(tree):
        said = _said(node)
        if said is None:
            continue
        kind, argument = said
        text = template(argument, constants)
        if words(text) >= 2:
            yield kind, _formatted(text) if kind in LEVELS.values() else text, argument.lineno
            done.update(ast.walk(argument))
    for node in ast.walk(tree):
        if node in done or not isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            continue
        text = _formatted(template(node, {}))
        done.update(ast.walk(node))
        if words(text) >= LEAST_WORDS and text.strip().count(" ") >= 2 and not _is_markup(text):
            yield "", text, node.lineno


def _formatted(text: str) -> str:
    """Return a text with its formats, such as %s, as what is filled in."""
    return FORMATS.sub(FILLED, text).replace("%%", "%")


def _is_markup(text: str) -> bool:
    """Return whether a text is of a page or a drawing that a command writes."""
    return "</" in text or bool(re.match(r"\s*<\w+ ", text))


def _silent(tree: ast.AST) -> set[ast.AST]:
    """Return the nodes whose texts have pages of their own, or are for readers of the code."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
            found.add(node.value)
        elif isinstance(node, ast.Call) and _name(node.func) in TABLES:
            found.update(ast.walk(node))
        elif isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.update(ast.walk(node.annotation))
    return found


def _said(node: ast.AST) -> tuple[str, ast.expr] | None:
    """Return the kind and the text of a `raise`, a call of the logger, or an error of the command line."""
    call = node.exc if isinstance(node, ast.Raise) else node
    if not isinstance(call, ast.Call) or not call.args:
        return None
    name = _name(call.func)
    if isinstance(node, ast.Raise):
        return (name if name[:1].isupper() else "Error"), call.args[0]
    if name in WARNERS:
        return LEVELS["warning"], max(call.args, key=lambda one: words(template(one, {})))
    if not isinstance(call.func, ast.Attribute) or name not in LEVELS:
        return None
    if name in ("warning", "info") and _name(call.func.value) != "logger":
        return None
    return LEVELS[name], call.args[-1 if name in ("exit", "error") else 0]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def template(node: ast.expr, constants: dict[str, str]) -> str:
    """Return the text that an expression makes, with names in braces for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else FILLED
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return template(node.value, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left, constants) + template(node.right, constants)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return template(node.left, constants)
    if isinstance(node, ast.IfExp):
        either = [template(one, constants) for one in (node.body, node.orelse)]
        return " | ".join(one for one in either if one)
    name = _name(node)
    if name in constants:
        return constants[name]
    return f"{{{name}}}" if name else FILLED


def words(text: str) -> int:
    """Return the number of words of a text that are not filled in."""
    return len(re.findall(r"[A-Za-z_']{2,}", re.sub(r"\{\w+\}", "", text)))
