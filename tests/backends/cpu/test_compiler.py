"""C compiled on first use: never at import, once a machine, by many processes at once, and with a reason where not.

Each test runs processes of its own, with a cache folder and an environment of its own.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adopt_hf.backends.cpu import compiler

pytestmark = [
    pytest.mark.everyday,
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc"),
]

PACKAGE = Path(__file__).parents[3] / "adopt_hf" / "backends"

# These modules only: the whole package takes seconds to import.
LOAD = f"""
import pathlib, sys, types
package = pathlib.Path({str(PACKAGE)!r})
for name, folder in (("adopt_hf", package.parent), ("adopt_hf.backends", package)):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]
from adopt_hf.backends import cache
from adopt_hf.backends.cpu import compiler
print("loaded" if compiler.load(package / "cpu" / "kernel.c").adopt_step else "")
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
print(next(line.split()[-1] for line in open("/proc/self/maps") if "kernel-" in line))
"""
# Of the compiled kernel: dtype of the parameters, and options.
ROUNDED = [
    ("float32", {"state_bits": 8}),
    ("float32", {"state_bits": 8, "decouple": True}),  # elements without a gradient stay unobserved
    ("float32", {"state_bits": 16}),
    ("bfloat16", {"state_bits": 16, "bf16_stochastic_round": True}),
    ("bfloat16", {"bf16_stochastic_round": True}),
    ("float32", {"state_bits": 32}),
    ("bfloat16", {"state_bits": 32, "decouple": True}),
]
DIGESTS = f"""
import hashlib, torch
from adopt_hf import ADOPT
shapes = (64, 300), (5000,), (33, 257), (4097,)
for dtype, options in {ROUNDED}:
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, dtype=getattr(torch, dtype))) for shape in shapes]
    optimizer = ADOPT(params, lr=1e-2, backend="fused", weight_decay=0.1, **options)
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
    assert "RuntimeError: backend='fused' cannot run on cpu tensors of torch.float32: no C compiler was found" in err
    assert "(looked for cc, gcc, clang). Install one, or set CC to one" in err
    said = [line for line in err.splitlines() if line.startswith('backend="auto" updates cpu tensors by foreach')]
    assert len(said) == 1  # a warning: without a handler of the user's, nothing lower is printed
    assert "which takes 3 to 8 times the time of the compiled kernel: no C compiler was found" in said[0]
    assert "Install one, or set CC to one. The wheel of adopt_hf for " in said[0]


def test_it_is_compiled_once(tmp_path: Path) -> None:
    assert run(LOAD, tmp_path) == "loaded"
    (library,) = tmp_path.iterdir()
    assert library.name.startswith("kernel-")
    assert library.name.endswith(".so")
    time = library.stat().st_mtime_ns
    assert run(LOAD, tmp_path) == "loaded"
    assert list(tmp_path.iterdir()) == [library]
    assert library.stat().st_mtime_ns == time


@pytest.mark.slow
def test_processes_that_compile_at_once_do_not_collide(tmp_path: Path) -> None:
    processes = [start(LOAD, tmp_path) for _ in range(8)]
    results = [process.communicate() for process in processes]
    assert [out.strip() for out, _ in results] == ["loaded"] * 8, results
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", [b"", b"no library"], ids=["empty", "garbage"])
def test_a_damaged_file_is_compiled_anew(damage: bytes, tmp_path: Path) -> None:
    run(LOAD, tmp_path)
    (library,) = tmp_path.iterdir()
    library.write_bytes(damage)
    assert run(LOAD, tmp_path) == "loaded"
    assert library.stat().st_size > 10_000
    assert list(tmp_path.iterdir()) == [library]


@pytest.mark.slow
def test_a_file_that_was_cut_off_is_not_loaded(tmp_path: Path) -> None:
    """Its head is that of a library: loading it would end the process."""
    run(LOAD, tmp_path)
    (library,) = tmp_path.iterdir()
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    assert run(LOAD, tmp_path) == "loaded"
    assert library.stat().st_size > 10_000


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    """Not even root can write below a file or into /proc. What is compiled for the process alone is gone afterwards."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file" / "cache", tmp_path / "file", Path("/proc/adopt_hf")):
        process = start(LOAD, cache, TMPDIR=str(temporary))
        out, err = process.communicate()
        assert out.strip() == "loaded"
        assert err.startswith("The compiled CPU kernel cannot be cached, so every process compiles it")
        assert f"the cache folder {cache} cannot be created: " in err
        assert list(temporary.iterdir()) == []


@pytest.mark.slow
def test_without_a_home_or_a_folder_for_temporary_files_it_is_loaded_all_the_same(tmp_path: Path) -> None:
    assert run(LOAD, Path("~nosuchuser/cache")) == "loaded"
    nowhere = "import tempfile; tempfile.tempdir = '/proc/nowhere'" + LOAD
    assert run(nowhere, tmp_path) == "loaded"
    err = start(nowhere, Path("/proc/nowhere")).communicate()[1]
    assert "RuntimeError: kernel.c cannot be compiled and loaded: " in err


@pytest.mark.slow
def test_a_relative_folder(tmp_path: Path) -> None:
    assert run(f"import os; os.chdir({str(tmp_path)!r})" + LOAD, Path(".")) == "loaded"
    (library,) = tmp_path.iterdir()
    assert run(f"import os; os.chdir({str(tmp_path)!r})" + LOAD + KEPT, Path(".")) == f"loaded\n{library}"


@pytest.mark.slow
def test_it_is_kept_for_the_processor(tmp_path: Path) -> None:
    """A folder may be shared by machines of which one lacks the other's instructions."""
    other = LOAD.replace("print(", "compiler._processor = lambda: 'another'\nprint(")
    run(LOAD, tmp_path)
    run(other, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
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
        ("nonesuch -m64", "CC is 'nonesuch -m64', and this C compiler was not found"),
        ("false", "/false cannot compile kernel.c: exit code 1"),
        ('"cc', "RuntimeError: kernel.c cannot be compiled and loaded: No closing quotation"),
        ("/dev/null", "CC is '/dev/null', and this C compiler was not found"),
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


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="switches off instructions of x86")
@pytest.mark.parametrize("case", range(len(ROUNDED)), ids=lambda i: str(ROUNDED[i]))
def test_a_step_is_the_same_without_wide_vectors(case: int, digests: list[list[str]]) -> None:
    narrow, native = digests
    assert len(set(native)) == len(native) == len(ROUNDED)  # or some of the options do nothing
    assert narrow[case] == native[case]


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The digests of six steps, a line a case, of the kernel without AVX2 and as it is. Each has a process."""
    folder = tmp_path_factory.mktemp("caches")
    started = [start(DIGESTS, folder / "narrow", CC="cc -mno-avx2"), start(DIGESTS, folder / "native")]
    ended = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    return [out.split() for out, _ in ended]


# -- of a source that takes no time ------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source of a library of one function, and a cache folder that is not there yet."""
    source = tmp_path / "tiny.c"
    source.write_text("int answer(void) { return 42; }")
    monkeypatch.setenv("ADOPT_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return source


def loaded(source: Path) -> int:
    compiler.load.cache_clear()
    return int(compiler.load(source).answer())


def planted(folder: Path, name: str = "tiny-") -> Path:
    """Compile a library that writes a file when it is loaded, under a name that the loader looks for."""
    mark, source = folder.parent / "planted code ran", folder.parent / "evil.c"
    source.write_text(
        "#include <stdio.h>\n__attribute__((constructor)) static void run(void)"
        f' {{ fclose(fopen("{mark}", "w")); }} int answer(void) {{ return 13; }}'
    )
    library = folder.parent / "evil.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    data = library.read_bytes()
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}.so"
    path.write_bytes(data)
    return mark


@pytest.mark.parametrize("whose", ["folder for others", "folder of another", "file for others", "file of another"])
def test_a_planted_library_is_not_loaded(
    whose: str, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    mark = planted(folder, f"tiny-{compiler._key(tiny, compiler.command())}")
    (library,) = folder.iterdir()
    path = folder if whose.startswith("folder") else library
    if whose.endswith("for others"):
        path.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    else:
        pytest.skip("only root can give files to another user")
    assert loaded(tiny) == 42
    assert not mark.exists()
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    if path is folder:
        assert f"the cache folder {folder} cannot be trusted: " in warned[0]
        assert compiled(folder) == [library.name]
    else:
        assert warned == []
        assert compiled(folder) != [library.name]  # which has made room for ours


def test_a_relative_xdg_folder_is_not_looked_into(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADOPT_HF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache" / "adopt_hf").mkdir(parents=True)
    mark = planted(tmp_path / "cache" / "adopt_hf", f"tiny-{compiler._key(tiny, compiler.command())}")
    assert loaded(tiny) == 42
    assert (tmp_path / "cache" / "planted code ran") == mark
    assert not mark.exists()
    assert len(compiled(tmp_path / "home" / ".cache" / "adopt_hf")) == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the loader cannot open a file that is open")
def test_what_is_loaded_is_what_was_checked(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast a file is replaced after the check."""
    folder = tmp_path / "cache"
    assert loaded(tiny) == 42
    (good,) = folder.iterdir()
    mark = planted(folder, "other")
    (bad,) = folder.glob("other-*")
    digest = compiler._digest

    def replaced_meanwhile(data: bytes) -> str:
        os.replace(bad, good)
        return digest(data)

    monkeypatch.setattr(compiler, "_digest", replaced_meanwhile)
    assert loaded(tiny) == 42
    assert not mark.exists()


CROSS = """#!/bin/sh
cc "$@" || exit
while [ "$1" != -o ]; do shift; done
printf '\\{machine}\\000' | dd of="$2" bs=1 seek=18 conv=notrunc 2>/dev/null
"""


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="Linux only")
@pytest.mark.parametrize(("machine", "name"), [("267", "aarch64"), ("050", "arm"), ("002", "ELF machine 2")])
def test_a_compiler_for_another_machine_is_named(
    machine: str, name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cross-cc"
    compiler.write_text(CROSS.format(machine=machine))
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(RuntimeError, match=rf"cross-cc compiles for {name}.*this Python runs on .*Set CC to another"):
        loaded(tiny)
    assert compiled(tmp_path / "cache") == []


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="Linux only")
@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        ("libc.musl-x86_64.so.1", "compiles for the C library musl, and this Python uses another one"),
        ("libc.so", "compiles for the C library musl, and this Python uses another one"),
        ("libnowhere.so.1", "to a library that cannot be loaded here: libnowhere.so.1: cannot open shared object"),
    ],
)
def test_a_compiler_for_another_c_library_is_named(
    needs: str, reason: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if b"ld-musl" in Path("/proc/self/exe").read_bytes()[:4096]:
        pytest.skip("musl is this Python's")
    empty = tmp_path / "empty.c"
    empty.write_text("")
    subprocess.run(["cc", "-shared", f"-Wl,-soname,{needs}", "-o", tmp_path / needs, empty], check=True)
    monkeypatch.setenv("CC", f"cc -Wl,--no-as-needed {tmp_path / needs}")
    with pytest.raises(RuntimeError) as raised:
        loaded(tiny)
    assert reason in str(raised.value)
    assert compiled(tmp_path / "cache") == []


def test_a_useless_library_of_an_earlier_version_is_removed(tiny: Path, tmp_path: Path) -> None:
    """Its name has the digest of what is in it, and the loader refuses it."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    data = b"no library"
    name = f"tiny-{compiler._key(tiny, compiler.command())}-{hashlib.sha256(data).hexdigest()[:16]}.so"
    (folder / name).write_bytes(data)
    assert loaded(tiny) == 42
    assert name not in compiled(folder)
    assert len(compiled(folder)) == 1
