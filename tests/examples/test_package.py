"""The recipes' scripts start by their paths, from any folder, and as modules."""

import ast
from pathlib import Path

import pytest

from tests.support.processes import ROOT, python

SCRIPTS = sorted(
    path
    for path in ROOT.glob("examples/*/*.py")
    if 'if __name__ == "__main__":' in path.read_text() and "from examples" in path.read_text()
)
FINDS_EXAMPLES = "sys.path.insert(0, str(Path(__file__).parents[2]))"


def test_every_script_finds_the_package_before_it_imports_from_it() -> None:
    assert len(SCRIPTS) >= 7
    for path in SCRIPTS:
        body = ast.parse(path.read_text()).body
        first = next(
            i for i, node in enumerate(body) if isinstance(node, ast.ImportFrom) and "examples" in str(node.module)
        )
        assert FINDS_EXAMPLES in [ast.unparse(node) for node in body[:first]], path.name


@pytest.mark.slow
@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("recipe", ["gpt2_pretraining", "llama_instruct"])
def test_a_recipe_starts(recipe: str, as_module: bool, tmp_path: Path) -> None:
    """By its path from another folder, with nothing on PYTHONPATH but what an installed adopt_hf would be."""
    script = ROOT / "examples" / recipe / "train.py"
    command = ["-m", f"examples.{recipe}.train"] if as_module else [script]
    said = python(*command, "--help", cwd=ROOT if as_module else tmp_path, env={"PYTHONPATH": None})
    assert "--optim_args" in said
