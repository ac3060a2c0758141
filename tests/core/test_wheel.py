"""The wheel, built without a download, and installed into an environment with torch and what torch itself needs."""

import subprocess
from pathlib import Path

import pytest

from tests.support.environments import environment, install, wheel_of

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


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a new environment with torch and the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    python = environment(folder / "venv", "torch")
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    assert not (packages / "packaging").exists(), "torch needs it, and this test tests nothing"
    install(python, wheel_of(REPOSITORY, folder, "any"))
    return python


@pytest.mark.slow
@pytest.mark.parametrize("command", [["-c", LOOP], ["-m", "adopt_hf", "env"]], ids=["a loop", "env"])
def test_with_torch_alone(command: list[str], empty: Path, tmp_path: Path) -> None:
    variables = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([empty, *command], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("fine\n" if command[0] == "-c" else "transformers is not installed") in done.stdout
    files = {path.name for path in (empty.parents[1] / "lib").glob("python*/site-packages/adopt_hf/backends/cpu/*")}
    assert {"kernel.c", "rounded.h"} <= files  # what is compiled where no library fits


HOOKED = (
    "import sys; print(any(hasattr(finder, 'adopt_hf_at_startup') for finder in sys.meta_path), 'torch' in sys.modules)"
)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["1", "0", "", None])
def test_a_variable_registers_without_a_command(value: str | None, empty: Path, tmp_path: Path) -> None:
    """By the .pth at the top of site-packages, which `python -E` and `-I` read, too."""
    variables = {"HOME": str(tmp_path)} | ({} if value is None else {"ADOPT_HF_REGISTER": value})
    for option in ("-c", "-Ec", "-Ic"):
        done = subprocess.run([empty, option, HOOKED], env=variables, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{value == '1'} False\n", "")
    (packages,) = (empty.parents[1] / "lib").glob("python*/site-packages")
    assert [str(path.relative_to(packages)) for path in packages.rglob("adopt_hf*.pth")] == ["adopt_hf_register.pth"]


@pytest.mark.slow
def test_the_command_is_installed(empty: Path, tmp_path: Path) -> None:
    command = [empty.with_name("adopt-hf"), "run", empty, "-c", f"{HOOKED}; sys.exit(7)"]
    done = subprocess.run(command, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "True False\n"), done.stderr
