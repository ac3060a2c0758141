"""The pages of the site by the files of the repository: docs/, the READMEs, and a page for each file that one links to.

A page of docs/ keeps its name. The pages of `MOVED` have a place of their own. Every other file or folder that a page
links to becomes a page below `source/`, so that the site has no link out of the repository.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from experiments.harness.machine import ROOT

MOVED = {  # file of the repository -> page of the site
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "tests/README.md": "contributing/tests.md",
    "CODE_OF_CONDUCT.md": "contributing/code_of_conduct.md",
    "SECURITY.md": "contributing/security.md",
    "CHANGELOG.md": "changelog.md",
    "examples/gpt2_pretraining/README.md": "recipes/gpt2_pretraining.md",
    "examples/llama_instruct/README.md": "recipes/llama_instruct.md",
    "experiments/paper/README.md": "evidence/paper.md",
}
DOCS, SOURCE = "docs/", "source/"
IMAGES = (".png", ".svg", ".jpg", ".gif")
LANGUAGES = {
    **{".py": "python", ".c": "c", ".h": "c", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".md": "markdown"},
    **{".sbatch": "bash", ".jinja": "jinja", ".ipynb": "json", ".diff": "diff", ".patch": "diff", ".yml": "yaml"},
}
LARGEST = 60_000  # characters of a file that is shown whole
LINK = re.compile(r"(?P<before>\]\(|\b(?:src|href)=\")(?P<path>[^)\s\"#:]+)(?P<rest>[#)\"])")
NO_SEARCH = "---\nsearch:\n  exclude: true\nhide:\n  - navigation\n---\n\n"


def place(path: str) -> str:
    """Return the page of a file or folder, given relative to the repository."""
    if path in MOVED:
        return MOVED[path]
    if path.startswith(DOCS) and path.endswith((".md", *IMAGES)):
        return path.removeprefix(DOCS)
    if path.endswith(IMAGES):
        return f"{SOURCE}{path}"
    return f"{SOURCE}{path}/index.md" if (ROOT / path).is_dir() else f"{SOURCE}{path}.md"


def origin(page: str) -> str:
    """Return the file of the repository that a page shows. Links of a page that a program makes begin at the root."""
    for file, moved in MOVED.items():
        if moved == page:
            return file
    return f"{DOCS}{page}" if (ROOT / DOCS / page).is_file() else "PAGE"


def linked(text: str, file: str) -> Iterable[str]:
    """Yield the files and folders of the repository that the text of `file` links to."""
    for match in LINK.finditer(text):
        path = target(match["path"], file)
        if path:
            yield path


def target(link: str, file: str) -> str | None:
    """Return the file or folder that a link in `file` names, relative to the repository, or None if it names none."""
    path = os.path.normpath(os.path.join(os.path.dirname(file), link))
    inside = not path.startswith("..") and path != "." and not os.path.isabs(path)
    return path if inside and (ROOT / path).exists() else None


def rewritten(text: str, file: str, page: str) -> str:
    """Return the text of `file` with its links as they must be in `page`."""

    def new(match: re.Match[str]) -> str:
        path = target(match["path"], file)
        if path is None:
            return match[0]
        return f"{match['before']}{os.path.relpath(place(path), os.path.dirname(page))}{match['rest']}"

    return LINK.sub(new, text)


def source_page(path: str) -> str:
    """Return the page of a file that is shown as it is, or of a folder with links to its files."""
    full = ROOT / path
    if full.is_dir():
        lines = [f"- {_entry(one, path)}" for one in sorted(full.iterdir()) if _is_shown(one)]
        return f"{NO_SEARCH}# {path}/\n\n" + "\n".join(lines) + "\n"
    text = full.read_text(encoding="utf-8")
    language = LANGUAGES.get(full.suffix, "text")
    return f"{NO_SEARCH}# {path}\n\n~~~~~~ {language}\n{text.rstrip()}\n~~~~~~\n"


def _entry(file: Path, folder: str) -> str:
    if file.is_dir() or (file.suffix not in LANGUAGES and f"{folder}/{file.name}" not in MOVED):
        return f"`{file.name}{'/' if file.is_dir() else ''}`"
    return f"[`{file.name}`]({folder}/{file.name})" if file.stat().st_size < LARGEST else f"`{file.name}`"


def _is_shown(file: Path) -> bool:
    return not file.name.startswith((".", "__pycache__")) and file.suffix not in (".pyc", ".so")


def files_needed(texts: dict[str, str]) -> dict[str, Path | str]:
    """Return what the links of all pages lead to and what is no page yet: the text of a page, or the path of an image.

    Args:
        texts: The text of each page.
    """
    needed: dict[str, Path | str] = {}
    waiting = [path for page, text in texts.items() for path in linked(text, origin(page))]
    while waiting:
        path = waiting.pop()
        page = place(path)
        if page in needed or page in texts or (path.startswith(DOCS) and (ROOT / DOCS / page).is_file()):
            continue
        needed[page] = ROOT / path if path.endswith(IMAGES) else source_page(path)
        if (ROOT / path).is_dir():
            waiting += linked(str(needed[page]), "PAGE")
    return needed
