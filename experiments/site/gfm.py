"""Pages as Python-Markdown wants them. They are written for GitHub, which is less strict about lists.

Python-Markdown begins a list only after an empty line. A paragraph or a table belongs to an item only if it is
indented by four spaces.
"""

import re

ITEM = re.compile(r"(?P<indent> *)(?P<mark>[-*]|\d+\.) +\S")
FENCE = re.compile(r" *(```|~~~)")
INDENT = 4


def for_python_markdown(text: str) -> str:
    """Return the text with an empty line before each list, and four spaces before what belongs to an item."""
    lines: list[str] = []
    fence = before = ""  # the mark that ends a block of code, and the line before
    width = 0  # of the mark of the list's items, 0 outside of a list
    is_loose = False  # whether the item has a second block
    for line in text.split("\n"):
        mark = FENCE.match(line)
        inside = bool(fence)
        if mark:
            fence = "" if fence == mark[1] else fence or mark[1]
        indent = len(line) - len(line.lstrip())
        item = None if inside else ITEM.match(line)
        may_begin = width or not before.strip() or (item and item["mark"] in ("-", "*", "1."))  # within a paragraph
        if item and not item["indent"] and may_begin:
            if before.strip() and (is_loose or not width):
                lines.append("")
            is_loose = False
            width = len(item["mark"]) + 1
        elif not inside and line.strip() and not indent and not before.strip():
            width = 0
        is_loose = is_loose or bool(width and not line.strip())
        is_code = is_loose and not item and indent >= width + INDENT
        is_part = width and line.strip() and (width <= indent < INDENT or is_code)
        lines.append(" " * (INDENT - width) + line if is_part else line)
        before = line
    return "\n".join(lines)
