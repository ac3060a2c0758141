"""Every produced passage by its key, and the pages that they stand in."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from experiments import compare, recipes
from experiments.harness.machine import ROOT
from experiments.harness.pages import Found, passages, write
from experiments.monitor import cost, figures
from experiments.pages import bits, convert, defaults, frameworks, launches, lora, measured, options, patches, speed
from experiments.step import prebuilt

COMMAND = "make docs-numbers"

TEXTS: dict[str, Callable[[], str]] = {
    **options.TEXTS,
    **launches.TEXTS,
    **patches.TEXTS,
    **measured.TEXTS,
    **lora.TEXTS,
    **speed.TEXTS,
    **recipes.TEXTS,
    **bits.TEXTS,
    **defaults.TEXTS,
    **convert.TEXTS,
    **compare.TEXTS,
    **cost.TEXTS,
    **prebuilt.TEXTS,
    **figures.TEXTS,
    **frameworks.TEXTS,
}


def pages(root: Path) -> list[Path]:
    """Every Markdown page that may have produced passages."""
    patterns = ("*.md", "docs/*.md", "docs/*/*.md", "examples/*/README.md", "experiments/*/README.md")
    return sorted(path for pattern in patterns for path in root.glob(pattern))


@cache
def text_of(key: str) -> str:
    """Return the text of a passage, made once a process.

    Raises:
        KeyError: If nothing makes a passage of this name.
    """
    if key not in TEXTS:
        raise KeyError(
            f"nothing makes a passage {key!r}: experiments/pages/registry.py knows {', '.join(sorted(TEXTS))}"
        )
    return TEXTS[key]()


def stale(root: Path = ROOT) -> list[str]:
    """Return a line for each passage that is not what its program makes now."""
    return [
        f"{page.relative_to(root)}: {found.marker} is stale: run `{COMMAND}`"
        for page, found in everything(root)
        if found.text != text_of(found.key)
    ]


def everything(root: Path = ROOT) -> Iterator[tuple[Path, Found]]:
    """Yield each passage with its page."""
    for page in pages(root):
        try:
            found = passages(page.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{page.relative_to(root)}: {error}") from error
        yield from ((page, one) for one in found)


def rebuild(root: Path = ROOT) -> None:
    """Write each page again whose passages have changed."""
    found = list(everything(root))
    texts = {key: text_of(key) for key in dict.fromkeys(one.key for _, one in found)}
    for page in dict.fromkeys(page for page, _ in found):
        write(page, texts, blocks=())
