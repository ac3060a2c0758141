"""Passages between markers, in Markdown.

A block stands between two lines of its own:

    <!-- KEY: the command that makes it -->

    text of any length

    <!-- end of KEY -->

A value stands within a sentence, and GitHub shows nothing of its markers:

    The loss is <!--= KEY -->3.11<!--/-->.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

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


def inserted(page: str, key: str, text: str) -> str:
    """Return the page with `text` in its block `key`.

    Raises:
        ValueError: If the page does not have this block exactly once.
    """
    if [found.key for found in passages(page) if found.is_block].count(key) != 1:
        raise ValueError(f"the page lacks the markers <!-- {key}: COMMAND --> and <!-- end of {key} -->, once each")
    return filled(page, {key: text})
