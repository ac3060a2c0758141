"""The passages on ADOPTW's defaults: the rule, the tables and the decisions of examples/paper/defaults.py."""

from collections.abc import Callable

from examples.paper import defaults, defaults_page


def _text(key: str) -> str:
    return defaults_page.texts(defaults, defaults.read())[key]


TEXTS: dict[str, Callable[[], str]] = {
    "defaults rule": lambda: _text("defaults rule"),
    "defaults results": lambda: _text("defaults results"),
    "defaults short": lambda: _text("defaults short"),
    "defaults clip": lambda: _text("defaults clip"),
    "where ADOPTW is behind AdamW": lambda: _text("where ADOPTW is behind AdamW"),
}
