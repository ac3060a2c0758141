"""Wheels with the compiled kernel inside: no compiler where they are installed, and one wheel for each platform."""

import platform
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import adopt_hf
import hatch_build
from tests.support.environments import WITHOUT_PATH, environment, install, library_of, wheel_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for this machine."""
    return wheel_of(REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of a new environment with torch and the wheel."""
    python = environment(tmp_path_factory.mktemp("empty") / "venv", "torch")
    install(python, wheel)
    return python


FIVE_LINES = """
import torch, adopt_hf
model, x = torch.nn.Linear(8, 1), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
optimizer = adopt_hf.ADOPTW(model.parameters(), lr=0.03)
loss = lambda: (model(x) - x.sum(1, keepdim=True)).square().mean()
for _ in range(100): optimizer.zero_grad(); now = loss(); now.backward(); optimizer.step(); print(now.item())
"""
FUSED = """
from adopt_hf import backends
from adopt_hf.backends.cpu import library
assert backends.choose("auto", torch.device("cpu"), torch.float32) is backends.CPU
print(library.find().origin)
"""
TRAINER = """
import torch, adopt_hf
from transformers import Trainer, TrainingArguments
class Model(torch.nn.Linear):
    def forward(self, x, labels): return {"loss": (super().forward(x) - labels).square().mean()}
data = [{"x": torch.eye(8)[i % 8], "labels": torch.ones(1)} for i in range(64)]
options = dict(use_cpu=True, report_to="none", logging_steps=8, num_train_epochs=8, save_strategy="no")
args = TrainingArguments("out", optim="adopt", learning_rate=0.05, **options)
trainer = Trainer(Model(8, 1), args, train_dataset=data)
trainer.train()
for row in trainer.state.log_history[:-1]: print(row["loss"])
"""
COMPILERS = ("cc", "gcc", "clang", "make")
LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"),
    reason="the tests' wheel has a library on Linux, x86-64 and aarch64",
)


def trained(python: Path, code: str, folder: Path, path: str = "") -> tuple[list[str], list[str]]:
    """Run code, of which the first lines of the output are losses. Return the other lines, and those of warnings."""
    variables = WITHOUT_PATH | {"HOME": str(folder), "PATH": path}
    done = subprocess.run([python, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    losses = [float(line) for line in lines if re.fullmatch(r"[\d.e-]+", line)]
    assert len(losses) >= 8
    assert losses[-1] < losses[0] / 2
    return lines[len(losses) :], [line for line in done.stderr.splitlines() if "backend=" in line or "kernel" in line]


@LINUX
@pytest.mark.slow
def test_five_lines_train_with_the_kernel_of_the_wheel_and_call_no_compiler(empty: Path, tmp_path: Path) -> None:
    """With an empty PATH, and with one whose compilers fail and leave a mark."""
    planted = tmp_path / "bin"
    planted.mkdir()
    for name in COMPILERS:
        (planted / name).write_text(
            f"#!{sys.executable}\nopen({str(tmp_path / 'called')!r}, 'w')\nraise SystemExit(1)\n"
        )
        (planted / name).chmod(0o755)
    (library,) = library_of(empty)
    for path in ("", str(planted)):
        origin, warnings = trained(empty, FIVE_LINES + FUSED, tmp_path, path)
        assert origin[0].startswith("from the wheel, with ")
        assert origin[0].endswith(f": {library}")
        assert warnings == []
    assert not (tmp_path / "called").exists()
    assert not (tmp_path / ".cache").exists()


@LINUX
@pytest.mark.slow
def test_the_trainer_trains_with_the_kernel_of_the_wheel(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", "torch", "transformers", "accelerate")
    install(python, wheel)
    origin, warnings = trained(python, TRAINER + FUSED, tmp_path)
    assert any(line.startswith("from the wheel, with ") for line in origin)
    assert warnings == []


@LINUX
@pytest.mark.slow
def test_the_wheel_is_for_every_python_and_for_an_old_c_library(wheel: Path, empty: Path) -> None:
    """Its library needs no symbol of a newer glibc than its name says, and links the C library and threads only."""
    machine = platform.machine()
    assert (
        wheel.name == f"adopt_hf-{adopt_hf.__version__}-py3-none-manylinux_2_17_{machine}.manylinux2014_{machine}.whl"
    )
    (library,) = library_of(empty)
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())
    assert versions
    assert max((int(major), int(minor)) for major, minor in versions) <= (2, 17)
    if shutil.which("readelf"):
        found = subprocess.check_output(["readelf", "-d", library], text=True)
        assert set(re.findall(r"NEEDED.*\[(.*)\]", found)) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}


@pytest.mark.slow
def test_the_sdist_installs_without_a_compiler_and_warns_once(tmp_path: Path) -> None:
    """The warning names the cost, the reason and what to install. The archive needs hatchling, and nothing else."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (archive,) = tmp_path.glob("adopt_hf-*.tar.gz")
    python = environment(tmp_path / "venv", "torch", "hatchling")
    install(python, archive)
    assert library_of(python) == []
    _, warnings = trained(python, FIVE_LINES, tmp_path)
    (warning,) = warnings
    assert "which takes 3 to 8 times the time of the compiled kernel: no C compiler was found" in warning
    assert "Install one, or set CC to one. The wheel of adopt_hf for " in warning


def test_an_editable_installation_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hatch_build.VARIABLE, raising=False)
    monkeypatch.setattr(subprocess, "run", None)
    build_data: dict[str, object] = {"force_include": {}}
    hatch_build.KernelHook.__new__(hatch_build.KernelHook).initialize("editable", build_data)
    assert build_data == {"force_include": {}}


# -- the wheels of all systems -----------------------------------------------------------------------------------------

EXPORTED = (b"adopt_step", b"adopt_instructions")
HEADS = {  # the beginning of a library, and what it may link
    "macos_arm64": (b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01", {b"/usr/lib/libSystem.B.dylib"}),
    "windows_amd64": (b"MZ", {b"kernel32.dll"}),
    "windows_arm64": (b"MZ", {b"kernel32.dll"}),
    "manylinux_aarch64": (b"\x7fELF\x02\x01", {b"libc.so.6", b"libpthread.so.0"}),
    "manylinux_x86_64": (b"\x7fELF\x02\x01", {b"libc.so.6", b"libpthread.so.0"}),
    "any": (b"", set()),
}


def test_each_wheel_of_make_wheels_is_looked_at() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    names = re.search(r"^WHEELS := (.*)$", makefile, re.MULTILINE)
    assert names is not None
    assert set(names[1].split()) == HEADS.keys() == {hatch_build.ANY, *hatch_build.PLATFORMS}


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_a_wheel_has_the_right_name_and_library(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("ziglang", reason="needs ziglang, which compiles for other systems")
    if hatch_build.PLATFORMS.get(name, "") == hatch_build.here():
        made = request.getfixturevalue("wheel")
    else:
        made = wheel_of(REPOSITORY, tmp_path, name)
    tag = hatch_build.PLATFORMS[name].tag if name in hatch_build.PLATFORMS else "any"
    assert made.name == f"adopt_hf-{adopt_hf.__version__}-py3-none-{tag}.whl"
    with zipfile.ZipFile(made) as opened:
        libraries = [path for path in opened.namelist() if re.search(r"cpu/kernel-\w+-\w+\.", path)]
        data = opened.read(libraries[0]) if libraries else b""
        about = opened.read(f"adopt_hf-{adopt_hf.__version__}.dist-info/WHEEL").decode()
    assert ("Root-Is-Purelib: true" in about) == (name == "any")
    assert len(libraries) == (name != "any")
    head, linked = HEADS[name]
    assert data.startswith(head)
    assert all(function in data for function in EXPORTED if data)
    found = re.findall(rb"\0(/usr/lib/[\w.]+\.dylib|[\w-]+\.dll|lib[\w]+\.so\.\d)(?=\0)", data, re.IGNORECASE)
    assert {x.lower() if b"dll" in x.lower() else x for x in found} - {b"kernel.dll"} == linked
    checked = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", made], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_an_unknown_wheel_is_named() -> None:
    hook = hatch_build.KernelHook.__new__(hatch_build.KernelHook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(hatch_build.VARIABLE, "linux_riscv64")
        with pytest.raises(
            ValueError, match=r"ADOPT_HF_WHEEL is 'linux_riscv64', .* write one of any, manylinux_x86_64,"
        ):
            hook.initialize("standard", {})


def test_an_isolated_build_for_a_platform_asks_for_zig(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = hatch_build.KernelHook.__new__(hatch_build.KernelHook)
    monkeypatch.delenv(hatch_build.VARIABLE, raising=False)
    assert hook.dependencies() == []
    monkeypatch.setenv(hatch_build.VARIABLE, "macos_arm64")
    assert hook.dependencies() == [hatch_build.ZIGLANG]
