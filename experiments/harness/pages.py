"""Markdown: passages between markers, and tables.

A block stands between two lines of its own:

    <!-- KEY: the command that makes it -->

    text of any length

    <!-- end of KEY -->

A value stands within a sentence, and GitHub shows nothing of its markers:

    The loss is <!--= KEY -->3.11<!--/-->.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from examples.shared.errors import InputError

BLOCK = re.compile(
    r"^(?P<begin><!-- (?P<key>[\w '-]+): [^\n]+ -->)\n(?P<text>.*?)\n(?P<end><!-- end of (?P=key) -->)$",
    re.DOTALL | re.MULTILINE,
)
VALUE = re.compile(r"(?P<begin><!--= (?P<key>[^\n]+?) -->)(?P<text>[^\n]*?)(?P<end><!--/-->)")
HALVES = (r"^<!-- [\w '-]+: [^\n]+ -->$", r"^<!-- end of [^\n]* -->$", r"<!--= ", r"<!--/-->")


class Found(NamedTuple):
    """A passage in a page."""

    key: str
    text: str
    marker: str  # the one that it begins with
    is_block: bool


def passages(page: str) -> list[Found]:
    """Return the passages of a page, blocks first.

    Raises:
        ValueError: If a marker has no partner.
    """
    found = []
    for pattern, (begin, end) in ((BLOCK, HALVES[:2]), (VALUE, HALVES[2:])):
        whole = list(pattern.finditer(page))
        halves = [len(re.findall(half, page, re.MULTILINE)) for half in (begin, end)]
        if halves != [len(whole)] * 2:
            raise ValueError(f"{halves[0]} markers begin a passage and {halves[1]} end one, {len(whole)} are pairs")
        found += [Found(m["key"], m["text"].strip("\n"), m["begin"], pattern is BLOCK) for m in whole]
    return found


def filled(page: str, texts: Mapping[str, str]) -> str:
    """Return the page with `texts[key]` in each passage whose key has a text."""

    def new(m: re.Match[str]) -> str:
        gap = "\n\n" if m.re is BLOCK else ""
        return f"{m['begin']}{gap}{texts[m['key']]}{gap}{m['end']}" if m["key"] in texts else m[0]

    return VALUE.sub(new, BLOCK.sub(new, page))


def write(page: Path, texts: Mapping[str, str], blocks: Iterable[str] | None = None) -> None:
    """Write `texts` into the passages of a file.

    Args:
        page: The Markdown file. It is written only if it changes.
        texts: The texts by key.
        blocks: The keys of the blocks that the page must have (default: all keys of `texts`).

    Raises:
        InputError: If there is no such file, a marker has no partner, or a block does not stand there exactly once.
    """
    try:
        before = page.read_text(encoding="utf-8")
        there = [found.key for found in passages(before) if found.is_block]
    except OSError as error:
        raise InputError(f"{page}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{page}: {error}") from None
    for key in texts if blocks is None else blocks:
        if there.count(key) != 1:
            raise InputError(f"{page} lacks the markers <!-- {key}: COMMAND --> and <!-- end of {key} -->, once each")
    after = filled(before, texts)
    if after != before:
        page.write_text(after, encoding="utf-8")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], numbers: bool = False) -> str:
    """Return a Markdown table, whose rows have as many cells as its head.

    Args:
        head: The titles of the columns.
        rows: The cells of each row. A bar in a cell is escaped, a line break becomes a space.
        numbers: Whether all columns except the first are aligned to the right.
    """
    lines = [head, ["---", *["---:" if numbers else "---"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(content: object) -> str:
    return str(content).replace("|", "\\|").replace("\n", " ")
