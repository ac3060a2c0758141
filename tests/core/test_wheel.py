"""The wheel, built without a download, and installed into an environment with torch and what torch itself needs."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

LOOP = """
import sys, torch
import adopt_hf
from adopt_hf import ADOPT, LayerwiseADOPT, param_groups

assert "site-packages" in adopt_hf.__file__, adopt_hf.__file__
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
before = [p.detach().clone() for p in model.parameters()]
for options in ({}, {"state_bits": 8}, {"state_bits": 16}, {"backend": "foreach"}, {"backend": "reference"}):
    optimizer = ADOPT(param_groups(model, weight_decay=0.1), lr=0.1, **options)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 64)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
LayerwiseADOPT(model.parameters())
assert not any(map(torch.equal, before, model.parameters()))
try:
    torch.optim.AdamW(param_groups(model, 0.1)).load_state_dict(optimizer.state_dict())
    raise AssertionError("taken")
except ValueError as error:
    assert "ADOPT" in str(error)
try:
    adopt_hf.register()
    raise AssertionError("registered")
except ImportError as error:
    assert "transformers is not installed" in str(error)
adopt_hf.unregister()
for name in ("transformers", "accelerate", "deepspeed", "packaging", "numpy"):
    try:
        __import__(name)
        raise AssertionError(f"{name} is there")
    except ImportError:
        pass
print("fine")
"""


def needed(name: str, found: dict[str, importlib.metadata.Distribution]) -> dict[str, importlib.metadata.Distribution]:
    """Return the distribution `name` and those that it depends on, extras left out."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key not in found:
        try:
            found[key] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another platform
            return found
        for requirement in found[key].requires or ():
            if "extra ==" not in requirement:
                needed(re.match(r"[\w.-]+", requirement)[0], found)  # type: ignore[index]
    return found


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a new environment with torch and the wheel. torch is linked to, since it is large."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY],
        check=True,
    )
    (wheel,) = folder.glob("adopt_hf-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    found = needed("torch", {})
    assert "packaging" not in found, "torch needs it, and this test tests nothing"
    for distribution in found.values():
        for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))).absolute())
    return python


@pytest.mark.slow
@pytest.mark.parametrize("command", [["-c", LOOP], ["-m", "adopt_hf", "env"]], ids=["a loop", "env"])
def test_with_torch_alone(command: list[str], empty: Path, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([empty, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("fine\n" if command[0] == "-c" else "transformers is not installed") in done.stdout
    files = {path.name for path in (empty.parents[1] / "lib").glob("python*/site-packages/adopt_hf/backends/cpu/*")}
    assert {"kernel.c", "rounded.h"} <= files  # what is compiled where it is used


HOOKED = (
    "import sys; print(any(hasattr(finder, 'adopt_hf_at_startup') for finder in sys.meta_path), 'torch' in sys.modules)"
)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["1", "0", "", None])
def test_a_variable_registers_without_a_command(value: str | None, empty: Path, tmp_path: Path) -> None:
    """By the .pth at the top of site-packages, which `python -E` and `-I` read, too."""
    environment = {"HOME": str(tmp_path)} | ({} if value is None else {"ADOPT_HF_REGISTER": value})
    for option in ("-c", "-Ec", "-Ic"):
        done = subprocess.run([empty, option, HOOKED], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{value == '1'} False\n", "")
    (packages,) = (empty.parents[1] / "lib").glob("python*/site-packages")
    assert [str(path.relative_to(packages)) for path in packages.rglob("adopt_hf*.pth")] == ["adopt_hf_register.pth"]


@pytest.mark.slow
def test_the_command_is_installed(empty: Path, tmp_path: Path) -> None:
    command = [empty.with_name("adopt-hf"), "run", empty, "-c", f"{HOOKED}; sys.exit(7)"]
    done = subprocess.run(command, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "True False\n"), done.stderr
