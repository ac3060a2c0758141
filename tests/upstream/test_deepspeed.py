"""ADOPT with a DeepSpeed and an Accelerate that no longer have the faults of docs/upstream/."""

from collections.abc import Callable
from pathlib import Path

import pytest

from adopt_hf.integrations.deepspeed.checkpoints import NO_NVME_RESUME
from tests.support.forks import BEFORE_TRANSFORMERS
from tests.support.overlay import UPSTREAM, in_changed
from tests.support.processes import free_port, run

pytestmark = pytest.mark.slow


def script(proposal: str, *changes: tuple[str, str]) -> str:
    """Return the reproducer of a proposal with texts replaced, each of which has to be there."""
    code = (UPSTREAM / proposal / "reproducer.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in code
        code = code.replace(old, new)
    return code


ADOPT = ("import torch\n", "import torch\n\nimport adopt_hf\n")
STAGE3 = script(
    "deepspeed-stage3-gradients",
    ADOPT,
    ("torch.optim.SGD(model.parameters(), lr=1.0)", "adopt_hf.ADOPT(model.parameters(), lr=1.0)"),
    (
        "    weights = []\n",
        "    print('replaced' if 'step' in vars(engine.optimizer) else 'unchanged')\n    weights = []\n",
    ),
)
UNIVERSAL = script(
    "deepspeed-universal-groups",
    ADOPT,
    ("torch.optim.AdamW(", "adopt_hf.ADOPTW("),
)
OFFLOAD = script(
    "accelerate-offload",
    ADOPT,
    ("class Still(torch.optim.SGD)", "class Still(adopt_hf.ADOPT)"),
)
NVME = script(
    "deepspeed-nvme-resume",
    ADOPT,
    ("torch.optim.Adam(", "adopt_hf.ADOPT("),
    ("import os\n", "import os\n\nfrom tests.support import aio\n\naio.stand_in()\n"),
)
UNREGISTERED = script(
    "accelerate-offload", ("import torch\n", "import torch\n\nimport adopt_hf\nadopt_hf.unregister()\n")
)


def done_with(code: str, folder: str, tmp_path: Path) -> str:
    """Return what `code` printed with the changed packages. It must end well, and adopt_hf must not warn."""
    variables = {"MASTER_PORT": str(free_port())}
    done = run(*in_changed(folder, code), cwd=tmp_path, env=variables, modules=BEFORE_TRANSFORMERS)
    assert done.returncode == 0, done.stderr
    assert "ADOPT" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize(("is_changed", "step"), [(False, "replaced"), (True, "unchanged")])
def test_stage_3_clears_its_gradients_once(
    is_changed: bool, step: str, changed: Callable[[str], str], tmp_path: Path
) -> None:
    folder = changed("deepspeed-stage3-gradients") if is_changed else str(tmp_path)
    assert [line for line in done_with(STAGE3, folder, tmp_path).splitlines() if line == step] == [step] * 2


def test_universal_checkpoints_keep_the_groups(changed: Callable[[str], str], tmp_path: Path) -> None:
    assert "loaded [(0.1, 0.01), (0.0, 0.02)]" in done_with(UNIVERSAL, changed("deepspeed-universal-groups"), tmp_path)


def test_resuming_from_nvme_is_still_refused(changed: Callable[[str], str], tmp_path: Path) -> None:
    """The refusal stays until a version of DeepSpeed that has the change is out."""
    variables = {"MASTER_PORT": str(free_port())}
    folder = changed("deepspeed-nvme-resume")
    done = run(*in_changed(folder, NVME), cwd=tmp_path, env=variables, modules=BEFORE_TRANSFORMERS)
    assert done.returncode != 0
    assert NO_NVME_RESUME in done.stderr


@pytest.mark.parametrize("code", [OFFLOAD, UNREGISTERED], ids=["adopt_hf", "without adopt_hf"])
def test_an_offloaded_adopt_is_not_replaced(code: str, changed: Callable[[str], str], tmp_path: Path) -> None:
    assert "trained by Still: the weights changed by 0.0" in done_with(code, changed("accelerate-offload"), tmp_path)
