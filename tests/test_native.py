"""C compiled on first use: never at import, once a machine, by many processes at once, and with a reason where not.

Each test runs processes of its own, with a cache folder and an environment of its own.
"""

import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")

PACKAGE = Path(__file__).parents[1] / "adopt_hf" / "backends"

# The module alone: the whole package takes seconds to import.
LOAD = f"""
import importlib.util, pathlib
spec = importlib.util.spec_from_file_location("native", {str(PACKAGE / "native.py")!r})
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
print("loaded" if native.load(pathlib.Path({str(PACKAGE / "cpu.c")!r})).adopt_step else "")
"""
AUTO = """
import os, pathlib, torch
import adopt_hf
from adopt_hf import ADOPT, backends
cache = pathlib.Path(os.environ["ADOPT_HF_CACHE"])
assert not cache.exists(), "compiled at import"
p = torch.ones(3, requires_grad=True)
p.grad = torch.ones(3)
ADOPT([p]).step()
chosen = backends.choose("auto", p.device, p.dtype)
print(next(name for name in ("CPU", "FOREACH") if getattr(backends, name) is chosen), cache.exists())
ADOPT([p], backend="fused").step()
"""


KEPT = """
print(next(line.split()[-1] for line in open("/proc/self/maps") if "cpu-" in line))
"""
ROUNDED = """
import hashlib, torch
from adopt_hf import ADOPT
torch.manual_seed(0)
shapes = (64, 300), (5000,), (33, 257), (4097,)
params = [torch.nn.Parameter(torch.randn(shape, dtype={dtype})) for shape in shapes]
optimizer = ADOPT(params, lr=1e-2, backend="fused", weight_decay=0.1, {storage})
for t in range(6):
    for p in params:
        p.grad = (torch.randn(p.shape) * torch.rand(p.shape).exp2()).to(p.dtype)
        p.grad[::5] = 0
        if t == 4:
            p.grad.view(-1)[3], p.grad.view(-1)[77] = torch.inf, torch.nan
    optimizer.step()
found = hashlib.sha256()
for p in params:
    for tensor in (p.detach(), *optimizer.state[p].values()):
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
print(found.hexdigest())
"""
HIDDEN = ("CC", "TRITON_INTERPRET")  # under the latter the Triton kernel takes CPU tensors


def start(code: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={k: v for k, v in os.environ.items() if k not in HIDDEN} | {"ADOPT_HF_CACHE": str(cache)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, cache: Path, **environment: str) -> str:
    process = start(code, cache, **environment)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.strip()


def compiled(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_import_compiles_nothing_and_the_first_optimizer_does(tmp_path: Path) -> None:
    assert run(AUTO, tmp_path / "cache") == "CPU True"


def test_without_a_compiler_auto_falls_back_and_fused_says_why(tmp_path: Path) -> None:
    process = start(AUTO, tmp_path / "cache", PATH=str(tmp_path))
    out, err = process.communicate()
    assert out.strip() == "FOREACH False"
    assert "RuntimeError: backend='fused' cannot run on cpu tensors of torch.float32: no C compiler is there" in err
    assert "looked for cc, gcc, clang; CC names another" in err


def test_it_is_compiled_once(tmp_path: Path) -> None:
    assert run(LOAD, tmp_path) == "loaded"
    (library,) = tmp_path.iterdir()
    assert library.name.startswith("cpu-")
    assert library.name.endswith(".so")
    time = library.stat().st_mtime_ns
    assert run(LOAD, tmp_path) == "loaded"
    assert list(tmp_path.iterdir()) == [library]
    assert library.stat().st_mtime_ns == time


def test_processes_that_compile_at_once_do_not_collide(tmp_path: Path) -> None:
    processes = [start(LOAD, tmp_path) for _ in range(8)]
    results = [process.communicate() for process in processes]
    assert [out.strip() for out, _ in results] == ["loaded"] * 8, results
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"no library"], ids=["empty", "garbage"])
def test_a_damaged_file_is_compiled_anew(damage: bytes, tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    (library,) = tmp_path.iterdir()
    library.write_bytes(damage)
    assert run(LOAD, tmp_path) == "loaded"
    assert library.stat().st_size > 10_000
    assert list(tmp_path.iterdir()) == [library]


def test_a_file_that_was_cut_off_is_not_loaded(tmp_path: Path) -> None:
    """Its head is that of a library: loading it would end the process."""
    run(LOAD, tmp_path)
    (library,) = tmp_path.iterdir()
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    assert run(LOAD, tmp_path) == "loaded"
    assert library.stat().st_size > 10_000


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """Not even root can write below a file or into /proc. What is compiled for the process alone is gone afterwards."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / "cache", Path("/dev/null"), Path("/proc/adopt_hf")):
        assert run(LOAD, cache, TMPDIR=str(temporary)) == "loaded"
        assert list(temporary.iterdir()) == []


def test_without_a_home_or_a_folder_for_temporary_files_it_is_loaded_all_the_same(tmp_path: Path) -> None:
    assert run(LOAD, Path("~nosuchuser/cache")) == "loaded"
    nowhere = "import tempfile; tempfile.tempdir = '/proc/nowhere'" + LOAD
    assert run(nowhere, tmp_path) == "loaded"
    err = start(nowhere, Path("/proc/nowhere")).communicate()[1]
    assert "RuntimeError: cpu.c cannot be compiled and loaded: " in err


def test_a_relative_folder(tmp_path: Path) -> None:
    assert run(f"import os; os.chdir({str(tmp_path)!r})" + LOAD, Path(".")) == "loaded"
    (library,) = tmp_path.iterdir()
    assert run(f"import os; os.chdir({str(tmp_path)!r})" + LOAD + KEPT, Path(".")) == f"loaded\n{library}"


def test_it_is_kept_for_the_processor(tmp_path: Path) -> None:
    """A folder may be shared by machines of which one lacks the other's instructions."""
    other = LOAD.replace("print(", "native._processor = lambda: 'another'\nprint(")
    run(LOAD, tmp_path)
    run(other, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_process_has_left_is_removed_later(tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    (library,) = tmp_path.iterdir()
    for age in (0, 7200):
        left = tmp_path / f"{library.name}{age}.tmp"
        left.write_text("")
        os.utime(left, (time.time() - age,) * 2)
    library.unlink()
    run(LOAD, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {library.name, f"{library.name}0.tmp"}


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("nonesuch -m64", "the C compiler that CC names is not there: 'nonesuch -m64'"),
        ("false", "/false cannot compile cpu.c: exit code 1"),
        ('"cc', "RuntimeError: cpu.c cannot be compiled and loaded: No closing quotation"),
        ("/dev/null", "the C compiler that CC names is not there"),
        ("cc -Dfloat=nonesuch", "error: unknown type name 'nonesuch'"),
    ],
)
def test_a_compiler_that_fails_is_a_reason(compiler: str, reason: str, tmp_path: Path) -> None:
    err = start(LOAD, tmp_path, CC=compiler, LC_ALL="C").communicate()[1]
    assert "RuntimeError: " in err
    assert reason in err
    assert list(tmp_path.iterdir()) == []


def test_the_library_is_kept_by_compiler_and_options_and_links_nothing_of_python(tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    run(LOAD, tmp_path, CC="cc -DOTHER")
    library, _ = tmp_path.iterdir()
    linked = subprocess.check_output(["ldd", str(library)], text=True)
    assert "libc" in linked
    assert not any(name in linked for name in ("python", "torch", "gomp"))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="switches off instructions of x86")
@pytest.mark.parametrize(
    ("dtype", "storage"),
    [
        ("torch.float32", "state_bits=8"),
        ("torch.float32", "state_bits=8, decouple=True"),  # elements without a gradient stay unobserved
        ("torch.float32", "state_bits=16"),
        ("torch.bfloat16", "state_bits=16, bf16_stochastic_round=True"),
        ("torch.bfloat16", "bf16_stochastic_round=True"),
    ],
)
def test_what_is_rounded_is_the_same_without_wide_vectors(dtype: str, storage: str, tmp_path: Path) -> None:
    code = ROUNDED.format(dtype=dtype, storage=storage)
    assert run(code, tmp_path / "narrow", CC="cc -mno-avx2") == run(code, tmp_path / "native")
