"""The helper that runs a script in the tests' process leaves nothing of it behind."""

import logging
from pathlib import Path

from tests.examples.script import call

SCRIPT = """
import logging, sys

logging.basicConfig(format="%(message)s", force=True)
for name in ("transformers", "adopt_hf"):
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.handlers, logger.propagate = [logging.StreamHandler()], False
    logger.info("from %s", name)
sys.exit(3)
"""


def of_loggers() -> list[tuple[int, list[logging.Handler], bool]]:
    loggers = (logging.root, logging.getLogger("transformers"), logging.getLogger("adopt_hf"))
    return [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]


def test_what_a_script_sets_on_loggers_ends_with_it(tmp_path: Path) -> None:
    script, before = tmp_path / "script.py", of_loggers()
    script.write_text(SCRIPT)
    result = call(script)
    assert (result.code, result.err) == (3, "from transformers\nfrom adopt_hf\n")
    assert of_loggers() == before
