"""Each module of the package has the test file of its name, at its place; or the row here says which file tests it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "adopt_hf", ROOT / "tests"
ELSEWHERE = {  # module -> the test file that it shares, without .py
    "__main__": "commands/test_env",
    "backends/bucket": "backends/test_backends",
    "backends/cpu/call": "backends/cpu/test_launch",
    "backends/cpu/source": "backends/cpu/test_prebuilt",
    "backends/cpu/target": "backends/cpu/test_compiler",
    "backends/dense": "backends/test_foreach",
    "backends/problem": "backends/test_agreement",
    "backends/triton/launch": "backends/triton/test_kernels",
    "backends/verdicts": "backends/test_selfcheck",
    "commands/compare/files": "commands/compare/test_command",
    **{
        f"commands/compare/page/{name}": "commands/compare/test_page"
        for name in ("figures", "marked", "sections", "svg", "tables")
    },
    **{f"commands/convert/{name}": "commands/convert/test_conversion" for name in ("complete", "files", "folder")},
    "commands/device_check": "commands/test_env",
    "identity": "integrations/test_guard",
    "integrations/after_import": "integrations/test_import_orders",
    **{
        f"integrations/checkpoints/{name}": "integrations/test_checkpoints"
        for name in ("disk", "folders", "layouts", "marks", "resuming")
    },
    **{
        f"integrations/deepspeed/{name}": "processes/test_zero"
        for name in ("checkpoints", "gradients", "initialize", "internals")
    },
    "integrations/ddp": "distributed/test_peers",
    "integrations/deepspeed/patches": "integrations/test_patching",
    "integrations/memory": "commands/test_memory",
    "integrations/trainer": "golden/test_saved",
    "integrations/transformers/deepspeed": "integrations/deepspeed/test_ds_config",
    "integrations/transformers/names": "integrations/test_compat",
    "integrations/transformers/patches": "integrations/test_patching",
    "integrations/transformers/registration": "integrations/test_compat",
    "integrations/transformers/weights": "integrations/test_peft",
    "integrations/transformers/callback": "integrations/transformers/test_monitor",
    "memory": "commands/test_memory",
    "memory_models": "commands/test_memory",
    "monitor/counts": "monitor/test_monitor",
    "plan/build": "plan/test_kept",
    "plan/entries": "plan/test_kept",
    "plan/known": "plan/test_kept",
    "traffic": "commands/test_memory",
    "state/conversion": "state/test_formats",
    "state/differences": "integrations/test_differences",
    "state/names": "state/test_loading",
    "state/prepare": "state/test_formats",
}


def without_tests(package: Path, tests: Path) -> list[str]:
    """Return the modules that have no test file, and the rows of ELSEWHERE that name no module or no file."""
    modules = {str(path.relative_to(package).with_suffix("")) for path in package.rglob("*.py")}
    found = [f"{module} is no module" for module in ELSEWHERE.keys() - modules]
    for module in sorted(modules):
        folder, name = str(Path(module).parent), Path(module).name
        own = tests / ("core" if folder == "." else folder) / f"test_{name}.py"
        if own.is_file() and module in ELSEWHERE:
            found.append(f"{module} has a file of its own and a row")
        elif name != "__init__" and not own.is_file() and not (tests / f"{ELSEWHERE.get(module)}.py").is_file():
            found.append(f"{module} has no {own.relative_to(tests)}")
    return found


def test_each_module_has_a_test_file() -> None:
    assert without_tests(PACKAGE, TESTS) == []


@pytest.mark.parametrize("module", ["new", "state/new"])
def test_a_module_without_one_is_found(module: str, tmp_path: Path) -> None:
    for name in (*ELSEWHERE, module):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (found,) = without_tests(tmp_path, TESTS)
    assert found.startswith(f"{module} has no ")
