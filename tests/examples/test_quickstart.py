"""The quick starts: short files that stand alone, train with ADOPT on any machine, and print a falling loss."""

import ast
import re
from pathlib import Path

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

import adopt_hf
from tests.examples.script import call

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = {"quickstart_trainer.py": 30, "quickstart_loop.py": 40}
STEPS = 100


@pytest.mark.parametrize("name", LINES)
def test_it_trains_with_adopt(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer is the one of optim="adopt", has done every step on every parameter, and the loss falls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with torch.random.fork_rng():
        result = call(EXAMPLES / name)
    assert result.code == 0, result.err
    optimizer = result.names["trainer"].optimizer if "trainer" in result.names else result.names["optimizer"]
    assert isinstance(optimizer, AcceleratedOptimizer)
    assert type(optimizer.optimizer) is adopt_hf.ADOPTW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    parameters = list(result.names["model"].parameters())
    assert [float(optimizer.state[parameter]["step"]) for parameter in parameters] == [STEPS] * len(parameters)
    losses = [float(loss) for loss in re.findall(r"\bloss\W+(\d+\.\d+)", result.out)]
    assert len(losses) == 5, result.out
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize("name", LINES)
def test_it_is_one_short_file(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert len(text.splitlines()) <= LINES[name]
    nodes = list(ast.walk(ast.parse(text)))
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {module.split(".")[0] for module in imported} <= {"accelerate", "adopt_hf", "torch", "transformers"}
