"""The hook of mkdocs: adds the pages that are made of the code, and lets all links lead to pages of the site."""

import os
import sys
from pathlib import Path
from typing import Any

import tomllib
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(__file__))))

from experiments.harness.machine import ROOT
from experiments.site import tree
from experiments.site.generated import pages
from experiments.site.gfm import for_python_markdown
from experiments.site.maths import InlineMaths

FIRST = {  # in the results of a search
    "troubleshooting.md": 4,
    "reference/options.md": 3,
    "reference/launch_modes.md": 4,
    "reference/commands.md": 3,
}
ASSETS = Path(__file__).parent / "assets"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the extension for equations, and the address of the repository, which pyproject.toml has."""
    config.markdown_extensions.append(InlineMaths())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository")
    links = f' · <a href="{address}">Repository</a>' if address else ""
    config.nav = _expanded(config.nav, sorted(pages()))
    config.copyright = f"adopt_hf, {project['license']}{links}"
    return config


def _expanded(nav: Any, made: list[str]) -> Any:
    """Return the nav with the pages of a folder in place of the folder's name, which ends in a slash."""
    if isinstance(nav, list):
        return [_expanded(one, made) for one in nav]
    if isinstance(nav, dict):
        return {title: _expanded(one, made) for title, one in nav.items()}
    return [page for page in made if page.startswith(nav)] if nav.endswith("/") else nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the READMEs, the pages that programs make, and every file that a page links to."""
    for file in list(files):
        if not file.src_uri.endswith((".md", *tree.IMAGES, ".css", ".js")):
            files.remove(file)  # results that a program reads
    for asset in ASSETS.iterdir():
        files.append(File.generated(config, f"assets/{asset.name}", abs_src_path=str(asset)))
    texts = {page: (ROOT / file).read_text(encoding="utf-8") for file, page in tree.MOVED.items()}
    texts |= pages()
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    for file in files.documentation_pages():
        texts.setdefault(file.src_uri, file.content_string)
    for page, made in tree.files_needed(texts).items():
        given: dict[str, Any] = {"content": made} if isinstance(made, str) else {"abs_src_path": str(made)}
        files.append(File.generated(config, page, **given))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links between files of the repository lead to their pages."""
    uri = page.file.src_uri
    if uri in FIRST:
        page.meta["search"] = {"boost": FIRST[uri]}
    if uri.startswith(tree.SOURCE) and not uri.endswith("/index.md"):
        return markdown
    return for_python_markdown(tree.rewritten(markdown, tree.origin(uri), uri))
