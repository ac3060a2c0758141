"""`adopt-hf run trl sft`: TRL's command, which starts processes of its own, trains with ADOPT.

The command is that of docs/trainer.md, on the model and data of test_trl.py. torch's own hook says what has stepped.
"""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.integrations.transformers.test_trl import MISSING, ROOT, STEPS, TINY, environment, folder
from tests.support.processes import SCRIPTS, python, run

__all__ = ["environment", "folder"]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def command_of_the_page(out: Path) -> list[str]:
    text = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^    adopt-hf run (trl sft .*)$", text, re.MULTILINE)
    given = {"MODEL": "model", "DATA": "data/sft", "trl": str(Path(sys.executable).with_name("trl"))}
    words = [given.get(word, word) for word in shlex.split(command)]
    return [*words, "--output_dir", str(out), *TINY.split(), "--bf16", "false"]


@pytest.mark.slow
def test_the_command_trains_adopt(folder: Path, environment: dict[str, str], tmp_path: Path) -> None:
    watched = {"PYTHONPATH": str(SCRIPTS / "watched"), "STEPPED": str(tmp_path)}
    line = [*command_of_the_page(tmp_path / "out"), "--optim_args", "beta2=0.95, clip_exp=0.3"]
    python("-m", "adopt_hf", "run", *line, cwd=folder, env=environment | watched)
    (path,) = tmp_path.glob("*.json")
    ((optimizer, steps, groups),) = json.loads(path.read_text())
    assert (optimizer, steps) == ("adopt_hf.optimizer.ADOPTW", STEPS)
    assert [(group["weight_decay"], group["betas"], group["clip_exp"]) for group in groups] == [
        (0.1, [0.9, 0.95], 0.3),
        (0.0, [0.9, 0.95], 0.3),
    ]
    assert (tmp_path / "out" / f"checkpoint-{STEPS}" / "optimizer.pt").exists()


@pytest.mark.slow
def test_without_us_it_does_not_know_the_name(folder: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The result that the test above would see if nothing of ours reached the command."""
    done = run(*command_of_the_page(tmp_path / "out"), cwd=folder, env=environment)
    assert done.returncode != 0
    assert "adopt" in done.stderr.splitlines()[-1]
