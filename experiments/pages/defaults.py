"""The passages on ADOPTW's defaults: the rule, the tables and the decisions of experiments/defaults/protocol.py."""

from collections.abc import Callable

from experiments.defaults import page as defaults_page
from experiments.defaults import protocol as defaults


def _text(key: str) -> str:
    return defaults_page.texts(defaults, defaults.read())[key]


TEXTS: dict[str, Callable[[], str]] = {
    "defaults rule": lambda: _text("defaults rule"),
    "defaults results": lambda: _text("defaults results"),
    "defaults short": lambda: _text("defaults short"),
    "defaults clip": lambda: _text("defaults clip"),
    "where ADOPTW is behind AdamW": lambda: _text("where ADOPTW is behind AdamW"),
}
