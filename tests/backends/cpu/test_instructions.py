"""A wheel's library computes the same bits with each set of instructions, and chooses one that the processor has.

305 recorded calls are repeated with the libraries as the wheels contain them: on this processor, and by qemu on x86-64
processors with fewer instructions and on an aarch64 one.
"""

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import hatch_build
from tests.backends.cpu import recorded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(hatch_build.here() is None, reason="the library is for Linux on x86-64 and aarch64"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc, which compiles replay.c"),
]
REPLAY = Path(__file__).with_name("replay.c")
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the sets of instructions are those of x86-64")
SETS = {"baseline": "sse2", "avx2": "avx2", "avx512": "avx512vl"}  # with a flag of /proc/cpuinfo
QEMU = {"Nehalem": "SSE2", "Haswell": "AVX2 and FMA"}  # processors, and the set to be chosen
SYSROOT = Path("/usr/aarch64-linux-gnu")  # of Debian's libc6-arm64-cross


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recorded calls and the program that repeats them."""
    folder = tmp_path_factory.mktemp("replay")
    assert recorded.record(folder / "calls") > 300
    subprocess.run(["gcc", "-O1", "-o", folder / "replay", REPLAY, "-ldl"], check=True)
    return folder


@pytest.fixture(scope="module")
def library(folder: Path) -> Path:
    """The library of the wheel for this machine."""
    wanted = hatch_build.here()
    assert wanted is not None
    return hatch_build.build(wanted, folder)[0]


def replayed(folder: Path, library: Path, function: str = "adopt_step", by: Sequence[object] = ("./replay",)) -> str:
    """Return the set of instructions that the library chooses, and what the program says of the calls."""
    command = [*map(str, by), str(library), function, "calls"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[\w -]+: 3\d\d calls, 0 different\n", done.stdout), done.stdout
    return done.stdout.split(":")[0]


def flags() -> list[str]:
    return next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()


@ON_X86
@pytest.mark.parametrize("name", SETS)
def test_each_set_computes_the_same_bits(name: str, folder: Path, library: Path) -> None:
    if SETS[name] not in flags():
        pytest.skip(f"this processor lacks {SETS[name]}")
    replayed(folder, library, f"adopt_step_{name}")


def test_the_best_set_is_chosen(folder: Path, library: Path) -> None:
    chosen = replayed(folder, library)
    if platform.machine() == "x86_64":
        has = [flag in flags() for flag in ("avx512vl", "avx2")]
        assert chosen == ("AVX-512" if has[0] else "AVX2 and FMA" if has[1] else "SSE2")
    else:
        assert chosen == "NEON"


@ON_X86
@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="needs qemu-x86_64-static (qemu-user-static)")
@pytest.mark.parametrize("processor", QEMU)
def test_a_processor_with_fewer_instructions_runs_none_that_it_lacks(
    processor: str, folder: Path, library: Path
) -> None:
    by = ("qemu-x86_64-static", "-cpu", processor, "./replay")
    assert replayed(folder, library, by=by) == QEMU[processor]


@pytest.mark.skipif(shutil.which("qemu-aarch64-static") is None, reason="needs qemu-aarch64-static (qemu-user-static)")
@pytest.mark.skipif(not (SYSROOT / "lib").exists(), reason=f"needs {SYSROOT} (libc6-arm64-cross)")
def test_the_library_for_aarch64_computes_the_same_bits(folder: Path) -> None:
    made, _ = hatch_build.build(hatch_build.PLATFORMS["manylinux_aarch64"], folder)
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.17"]
    subprocess.run([*zig, "-O1", "-o", folder / "replay_aarch64", REPLAY, "-ldl"], check=True)
    by = ("qemu-aarch64-static", "-L", SYSROOT, "./replay_aarch64")
    assert replayed(folder, made, by=by) == "NEON"


def test_another_rounding_is_noticed(folder: Path) -> None:
    """A library with fused multiply-adds, where the processor has them: otherwise the comparison would compare none."""
    wrong = folder / "wrong.so"
    options = ["-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
    sources = [hatch_build.INSTRUCTIONS.with_name("kernel.c"), REPLAY.with_name("one_set.c")]
    subprocess.run(["gcc", *options, "-o", wrong, *sources, "-lm"], check=True)
    with pytest.raises(AssertionError, match=r"3\d\d calls, [1-9]"):
        replayed(folder, wrong)
