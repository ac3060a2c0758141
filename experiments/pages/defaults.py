"""The passages on ADOPTW's defaults: the rule, the tables and the decisions of experiments/defaults/protocol.py."""

from collections.abc import Callable
from functools import partial

from experiments.defaults import page as defaults_page
from experiments.defaults import protocol as defaults
from experiments.harness import runs


def _text(key: str) -> str:
    return defaults_page.texts(defaults, runs.kept(defaults.NAME))[key]


KEYS = (*defaults_page.BLOCKS, "where ADOPTW is behind AdamW")
TEXTS: dict[str, Callable[[], str]] = {key: partial(_text, key) for key in KEYS}
