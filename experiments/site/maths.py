"""Equations as MathML, made while the site is built: the browser needs no script and no font from elsewhere.

GitHub's way of writing them is used: a block fenced as `math`, and $`...`$ within a line.
"""

import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

INLINE = r"\$`([^`]+)`\$"


def block(source: str, *_: Any, **__: Any) -> str:
    """Return the HTML of a block fenced as `math`, a formatter of pymdownx.superfences."""
    return f'<div class="math">{convert(source.strip(), display="block")}</div>'


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[Element | str, int, int]:  # type: ignore[override]  # noqa: N802
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class InlineMaths(Extension):
    """The extension of Markdown for $`...`$."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Put the pattern in front of that for code."""
        md.inlinePatterns.register(_Inline(INLINE, md), "inline-maths", 195)
