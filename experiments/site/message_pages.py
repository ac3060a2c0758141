"""The pages of the messages, one for each part of the package, with links to docs/troubleshooting.md."""

import html
import re
from collections import Counter
from functools import cache
from typing import NamedTuple

from experiments.harness.machine import ROOT
from experiments.site.messages import FILLED, Message, messages

TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
FOLDER = "reference/messages"
PARTS = {  # page -> title and the beginnings of its files, below adopt_hf/; the first that fits
    "trainer": ("The Trainer", ("integrations/transformers/", "integrations/trainer", "integrations/axolotl")),
    "deepspeed": ("DeepSpeed", ("integrations/deepspeed/", "distributed/flat")),
    "checkpoints": ("Checkpoints", ("integrations/checkpoints/",)),
    "integrations": ("Accelerate, PEFT and patches", ("integrations/",)),
    "states": ("States that are loaded", ("state/",)),
    "backends": ("Backends", ("backends/",)),
    "commands": ("Commands", ("commands/", "startup/", "__main__", "memory")),
    "optimizer": ("The optimizer", ("",)),
}
SHORT = 70  # characters of an anchor
ENTRY = re.compile(r"^#{2,3} (?P<title>.*)\n\n(?P<quotes>(?:    .*\n)+)", re.MULTILINE)
KIND = re.compile(r"^(\w*Error|WARNING|INFO): ")


class Entry(NamedTuple):
    """A section of docs/troubleshooting.md: its heading, and the messages that it quotes."""

    title: str
    quotes: tuple[str, ...]

    @property
    def anchor(self) -> str:
        return re.sub(r"[^\w -]", "", self.title.lower()).replace(" ", "-")


@cache
def entries() -> tuple[Entry, ...]:
    """Return the sections of docs/troubleshooting.md that quote a message."""
    text = TROUBLESHOOTING.read_text(encoding="utf-8")
    return tuple(
        Entry(m["title"], tuple(line.strip() for line in m["quotes"].splitlines())) for m in ENTRY.finditer(text)
    )


def quotes(quote: str, text: str) -> bool:
    """Return whether a quote, in which `…` stands for anything, is from the text of a message.

    Args:
        quote: The quote, with or without the class of the error in front.
        text: The text of a `Message`.
    """
    plain = re.sub(r"\{\w+\}", FILLED, " ".join(text.split()))
    parts = (re.escape(part.strip()) for part in KIND.sub("", quote).split(FILLED))
    return bool(re.search(".*".join(parts), plain))


def part_of(message: Message) -> str:
    """Return the page of a message."""
    file = message.file.partition("/")[2]
    return next(page for page, (_, beginnings) in PARTS.items() if file.startswith(beginnings))


def texts() -> dict[str, str]:
    """Return the pages of the messages."""
    made = {}
    taken: Counter[str] = Counter()
    for page, (title, _) in PARTS.items():
        mine = [one for one in messages() if part_of(one) == page]
        said = [one for one in mine if one.kind]
        others = [one for one in mine if not one.kind]
        parts = [
            f"---\ntitle: {title}\nhide:\n  - toc\n---\n\n# Messages: {title}\n\n"
            "Every error, warning and information of this part of adopt_hf, by file and line. "
            f"Names in braces and {FILLED} stand for what is filled in. Look in "
            "[troubleshooting](docs/troubleshooting.md) first.\n",
            *(_section(one, taken) for one in said),
        ]
        if others:
            parts += ["## Parts of messages\n", "Texts that are filled into others, or that a command prints.\n"]
            parts += [_section(one, taken) for one in others]
        made[f"{FOLDER}/{page}.md"] = "\n".join(parts) + "\n"
    return made


def _section(message: Message, taken: Counter[str]) -> str:
    """Return a heading with the text of a message, and where it comes from. Note the anchor in `taken`."""
    text = message.text.strip()
    remedies = [one for one in entries() if any(quotes(quote, text) for quote in one.quotes)]
    links = "".join(f" What to do: [{one.title}](docs/troubleshooting.md#{one.anchor})." for one in remedies)
    anchor = re.sub(r"\W+", "-", text.lower())[:SHORT].strip("-")
    taken[anchor] += 1
    anchor += f"-{taken[anchor]}" if taken[anchor] > 1 else ""
    return (
        f'<h3 class="message" id="{anchor}"><code>{html.escape(" ".join(text.split()))}</code></h3>\n\n'
        f"{message.kind or 'Text'} in [{_short(message.file)}]({message.file}), line {message.line}.{links}\n"
    )


def _short(file: str) -> str:
    return f"`{file}`"
