"""Imports point one way: what ROOMS lists, each room only from those before it. This list is the rule.

The core needs only torch. The GPU kernels are written in Triton, which comes with torch where it is for GPUs; without
it they are left out.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import python

PACKAGE = Path(__file__).parents[2] / "adopt_hf"
ROOMS = (  # rooms of one line may import each other
    ("algorithm", "hyperparameters", "distributed", "first_steps", "identity"),
    ("state",),
    ("backends", "memory", "memory_models", "param_groups", "traffic"),
    ("plan",),
    ("torch_compile",),
    ("optimizer",),
    ("layerwise", "monitor"),
    ("integrations",),
    ("commands",),
    ("__init__", "__main__", "startup"),
)
WINGS = ("integrations.transformers", "integrations.deepspeed")
INTO_WINGS = {  # module -> what it may import from inside of a wing that is not its own
    "integrations.__init__": WINGS,  # the hall, which puts them together
    "integrations.trainer": ("integrations.transformers.names",),  # a path of earlier versions
    "integrations.transformers.deepspeed": ("integrations.deepspeed.ds_config",),
    "commands.compare.runner": ("integrations.transformers.observer",),
    "commands.convert.change": ("integrations.transformers.optim_args",),
    "commands.convert.layouts": ("integrations.deepspeed.checkpoints",),
    "integrations.accelerate": ("integrations.deepspeed.ds_config",),
}
FOLDERS = ("adopt_hf", "examples", "experiments", "tests")  # of the repository, in the same sense
CORE = {name for rooms in ROOMS[:7] for name in rooms}


def modules() -> list[Path]:
    found = sorted(PACKAGE.rglob("*.py"))
    assert len(found) > 5
    return found


def room(dotted: str) -> str:
    """Return the room of a module named from inside the package: "backends" of "backends.foreach"."""
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
    return next(i for i, rooms in enumerate(ROOMS) if name in rooms)


def is_in(dotted: str, package: str) -> bool:
    return f"{dotted}.".startswith(f"{package}.")


def wrong_imports(source: str, module: str) -> list[str]:
    """Return what `module` (dotted, inside the package) imports and may not."""
    wrong = []
    for imported in imports(ast.parse(source)):
        top, _, rest = imported.partition(".")
        if top == "adopt_hf":
            known = {name for rooms in ROOMS for name in rooms}
            target = room(rest) if room(rest) in known else "__init__"
            if height(target) > height(room(module)):
                wrong.append(imported)
            if any(is_in(rest, wing) and not is_in(module, wing) for wing in WINGS):
                wrong += [] if any(is_in(rest, one) for one in INTO_WINGS.get(module, ())) else [imported]
        elif room(module) in CORE and top not in sys.stdlib_module_names:
            may = ("torch", "triton") if module.startswith("backends.triton.") else ("torch",)
            if top not in may:
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
        ("from adopt_hf.state import formats", "distributed.flat"),
        ("from adopt_hf.plan import build", "state.loading"),
        ("def f():\n    from adopt_hf.integrations import trainer", "optimizer"),
        ("import transformers", "optimizer"),
        ("import numpy as np", "algorithm"),
        ("import triton", "backends.foreach"),
        ("from adopt_hf.commands import run", "integrations.trainer"),
        ("from adopt_hf.integrations.deepspeed import gradients", "integrations.transformers.deepspeed"),
        ("from adopt_hf.integrations.deepspeed.ds_config import config", "integrations.transformers.arguments"),
        ("from adopt_hf.integrations.transformers import names", "integrations.deepspeed.ds_config"),
        ("from adopt_hf.integrations.transformers.fields import assign", "integrations.accelerate"),
        ("from adopt_hf.integrations.deepspeed.refused import REPLACEMENTS", "commands.env"),
    ],
)
def test_a_wrong_import_is_found(source: str, module: str) -> None:
    assert wrong_imports(source, module) != []


def wrong_folders(source: str, folder: str) -> list[str]:
    """Return what a file of a folder of the repository imports and may not."""
    later = FOLDERS[FOLDERS.index(folder) + 1 :]
    return [name for name in imports(ast.parse(source)) if name.split(".")[0] in later]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_import_those_before_them(folder: str) -> None:
    files = sorted((PACKAGE.parent / folder).rglob("*.py"))
    assert len(files) > 5
    assert {str(file): wrong for file in files if (wrong := wrong_folders(file.read_text(), folder))} == {}


def test_an_import_from_a_later_folder_is_found() -> None:
    assert wrong_folders("def f():\n    from tests.oracle import Oracle", "experiments") == ["tests.oracle"]
    assert wrong_folders("import experiments.harness", "examples") == ["experiments.harness"]


@pytest.mark.everyday
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
    said = python("-c", code)
    assert said.startswith("Triton cannot be imported (ModuleNotFoundError: ") == (triton == "missing")


@pytest.mark.everyday
def test_importing_the_package_does_not_import_dynamo() -> None:
    """Dynamo takes a second to import, and changes the exit code of a process that dies of SIGINT."""
    code = """
import sys
import adopt_hf
assert "torch._dynamo" not in sys.modules
"""
    python("-c", code)
