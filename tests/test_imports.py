"""Imports point one way: algorithm <- backends <- optimizer <- integrations <- commands <- __main__.

The core needs only torch. The GPU kernels are written in Triton, which comes with torch where it is for GPUs; without
it they are left out.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adopt_hf"
ROOMS = (
    "algorithm",
    "backends",
    "optimizer",
    "integrations",
    "commands",
    "__main__",
)  # each may import those before it
BESIDE = {
    "partition": 0,
    "sharding": 0,
    "rounding": 0,
    "first_steps": 0,
    "quantization": 0,
    "storage": 0,
    "moments": 0,
    "differences": 0,
    "names": 0,
    "memory": 0,
    "memory_models": 0,
    "states": 1,
    "single": 1,
    "plan": 1,
    "entries": 1,
    "known": 1,
    "kept_plan": 1,
    "param_groups": 1,
    "untraced": 2,
    "layerwise": 2,
    "__init__": 3,
}  # stands beside the room of that index
MAY = {
    "backends.triton.launch": ["triton"],
    "backends.triton.kernels": ["triton"],
    "backends.triton.rounded_kernels": ["triton"],
}
CORE = ("algorithm", "backends", "optimizer", *(name for name in BESIDE if name != "__init__"))


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 5
    return found


def room(dotted: str) -> str:
    """The room of a module named from inside the package: "backends.foreach" -> "backends"."""
    return dotted.split(".")[0]


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            is_package = (PACKAGE.parent / module.replace(".", "/")).is_dir()
            yield from (f"{module}.{alias.name}" for alias in node.names) if is_package else (module,)


def height(name: str) -> int:
    return BESIDE[name] if name in BESIDE else ROOMS.index(name)


def wrong_imports(source: str, module: str) -> list[str]:
    """What `module` (dotted, inside the package) may not import."""
    wrong = []
    for imported in imports(ast.parse(source)):
        top, _, rest = imported.partition(".")
        if top == "adopt_hf":
            target = room(rest) if room(rest) in (*ROOMS, *BESIDE) else "__init__"
            if height(target) > height(room(module)):
                wrong.append(imported)
        elif room(module) in CORE and top not in ("torch", *MAY.get(module, ())) and top not in sys.stdlib_module_names:
            wrong.append(imported)
    return wrong


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    dotted = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    assert wrong_imports(path.read_text(), dotted) == []


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("from adopt_hf.optimizer import ADOPT", "algorithm"),
        ("from adopt_hf import optimizer", "backends.foreach"),
        ("import adopt_hf", "algorithm"),
        ("def f():\n    from adopt_hf.integrations import trainer", "optimizer"),
        ("import transformers", "optimizer"),
        ("import numpy as np", "algorithm"),
        ("from adopt_hf.commands import run", "integrations.trainer"),
    ],
)
def test_a_wrong_import_is_found(source: str, module: str) -> None:
    assert wrong_imports(source, module) != []


@pytest.mark.parametrize("triton", ["there", "missing"])
def test_the_kernels_for_gpus_are_not_imported_before_they_are_used(triton: str) -> None:
    """And where there is none, or one that is broken, the package works and says so."""
    code = f"""
import importlib.metadata, sys, torch
if {triton == "missing"}:
    sys.modules["triton"] = None
from adopt_hf import ADOPT, backends
if {triton == "missing"}:
    print(backends.TRITON.why_not(torch.device("cuda"), torch.float32))
p = torch.ones(3, requires_grad=True)
p.grad = torch.ones(3)
ADOPT([p]).step()
assert "adopt_hf.backends.triton.kernels" not in sys.modules
"""
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said.startswith("Triton cannot be imported (ModuleNotFoundError: ") == (triton == "missing")


def test_importing_the_package_does_not_import_dynamo() -> None:
    """Which takes a second, and with which a process that dies of SIGINT ends in another exit code."""
    code = """
import sys
import adopt_hf
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
