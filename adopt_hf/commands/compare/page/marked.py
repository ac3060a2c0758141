"""Numbers on the page, each marked with its place in results.json."""

import re
from collections.abc import Callable, Mapping
from html import escape
from typing import Any

Form = Callable[[Any], str]


UNBROKEN = re.compile(r"\d[\d.]*e-?\d+|[-+]?\d[\d.,]* %|[-+]\d[\d.,]*\d")


def text(sentence: str) -> str:
    """Return a sentence as HTML. No line ends inside of a number."""
    return UNBROKEN.sub(lambda match: f'<span class="nb">{match.group()}</span>', escape(sentence))


class Marked:
    """Write numbers of the results as HTML.

    Args:
        found: The results.
    """

    def __init__(self, found: Mapping[str, Any]):
        self.found = found

    def at(self, path: str) -> Any:
        """Return what results.json has at a path such as 'settings.0.final.mean'."""
        value: Any = self.found
        for word in path.split("."):
            value = value[int(word)] if isinstance(value, list) else value[word]
        return value

    def __call__(self, path: str, form: Form = str, none: str = "-") -> str:
        """Return the number at a path as HTML, or `none` if there is no number."""
        value = self.at(path)
        if value is None:
            return f'<span class="absent">{none}</span>'
        return f'<data value="{value!r}" data-path="{path}">{escape(form(value))}</data>'

    def mean(self, path: str, form: Callable[[float, float | None], str]) -> str:
        """Return a mean with the half-width of its interval, if it has one."""
        mean, half = self.at(f"{path}.mean"), self.at(f"{path}.half")
        text = self(f"{path}.mean", lambda value: form(value, half))
        if mean is None or half is None:
            return text
        return f'{text} <span class="half">± {self(f"{path}.half", lambda value: form(value, mean))}</span>'
