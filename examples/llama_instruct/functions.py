"""Make instructions of the documented functions of Python's standard library, which every machine has.

There are two questions about a signature: what the function does, and which part of the library it is from. The first
sentence of the docstring answers the first one. One file in ten is held out, from the pretraining text and from the
instructions.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from examples.shared import text

HELD_OUT = 10  # one file in 10 is held out
WORDS = range(3, 31)  # the allowed lengths of a response

SUBJECTS = {
    "concurrency": "asyncio concurrent multiprocessing threading queue sched selectors signal subprocess",
    "interfaces": "argparse cmd curses getopt idlelib optparse pdb pydoc rlcompleter tkinter turtle turtledemo",
    "language": "ast code codeop compileall dis importlib inspect lib2to3 pickle pickletools pkgutil runpy symtable "
    "tokenize trace traceback types typing unittest",
    "network": "cgi email ftplib http imaplib mailbox nntplib poplib smtpd smtplib socket socketserver ssl telnetlib "
    "urllib webbrowser wsgiref xmlrpc",
}
SUBJECT_OF = {module: subject for subject, modules in SUBJECTS.items() for module in modules.split()}
OTHER = "elsewhere"


@dataclass(frozen=True)
class Function:
    """A documented function or method. `summary` is the first sentence of its docstring."""

    module: str
    signature: str
    summary: str

    @property
    def subject(self) -> str:
        return SUBJECT_OF.get(self.module.split(".")[0], OTHER)

    @property
    def instructions(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The two questions, each with its answer. The second one leaves out the module, which would be the answer."""
        return (
            (f"What does this function of {self.module} do?\n\n{self.signature}", self.summary),
            (f"Which part of the library is this function from?\n\n{self.signature}", self.subject),
        )


def sources(held_out: bool, root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (module, source) of the library's files that are held out, or of the others.

    Args:
        held_out: Which files.
        root: The folder of the library, by default this interpreter's.
    """
    for path, relative in text.library_files(root):
        if is_held_out(relative) == held_out:
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            yield module, path.read_bytes().decode("utf-8", errors="replace")


def is_held_out(relative: Path) -> bool:
    return text.is_one_in(HELD_OUT, b"llama_instruct " + relative.as_posix().encode())


@cache
def documented(held_out: bool, root: Path | None = None) -> tuple[Function, ...]:
    """Return the documented functions of `sources(held_out)`. A response is in one function of one of the two sets."""
    seen = {f.summary for f in documented(False, root)} if held_out else set()
    found = []
    for module, source in sources(held_out, root):
        try:
            tree = ast.parse(source)
        except SyntaxError:  # lib2to3 has files in Python 2
            continue
        for function in functions_in(module, tree.body):
            if function.summary not in seen:
                seen.add(function.summary)
                found.append(function)
    return tuple(found)


def functions_in(module: str, body: list[ast.stmt], inside: str = "") -> Iterator[Function]:
    """Yield the documented functions in the body of a module or a class, from top to bottom."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from functions_in(module, node.body, f"class {node.name}: ")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            summary = first_sentence(ast.get_docstring(node) or "")
            if len(summary.split()) in WORDS:
                head = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
                yield Function(module, f"{inside}{head} {node.name}({ast.unparse(node.args)})", summary)


def first_sentence(docstring: str) -> str:
    """Return the first sentence of the first paragraph, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.!?:]) ", paragraph)[0]
