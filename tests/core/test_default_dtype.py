"""torch.set_default_dtype reaches every tensor that is made without a dtype: the optimizer makes none."""

import ast
from pathlib import Path

import pytest

from tests.support.processes import run

ROOT = Path(__file__).parents[2]
MAKERS = {"zeros", "ones", "full", "empty", "tensor", "arange", "rand", "randn", "linspace", "logspace", "eye"}
TABLES = (
    *("core/test_optimizer", "core/test_layerwise", "backends/test_backends", "backends/cpu/test_launch"),
    *("state/test_formats", "state/test_quantization", "state/test_rounding", "state/test_loading"),
)


def without_dtype(path: Path) -> list[str]:
    calls = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    return [
        f"{path.name}:{call.lineno} torch.{call.func.attr}"
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "torch"
        and call.func.attr in MAKERS
        and not any(keyword.arg == "dtype" for keyword in call.keywords)
    ]


def test_no_tensor_is_made_without_a_dtype() -> None:
    files = list((ROOT / "adopt_hf").rglob("*.py"))
    assert len(files) > 30
    assert [found for file in files for found in without_dtype(file)] == []


def test_a_tensor_without_a_dtype_is_found(tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text("import torch\ntorch.zeros(3, dtype=torch.float32)\ntorch.ones(3, device='cpu')\n", "utf-8")
    assert without_dtype(file) == ["planted.py:3 torch.ones"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_the_tables_of_tests_pass_under_another_default_dtype(dtype: str) -> None:
    files = [f"tests/{name}.py" for name in TABLES]
    options = ("-q", "-x", "-p", "no:cacheprovider", f"--default-dtype={dtype}")
    done = run("-m", "pytest", *options, *files, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
