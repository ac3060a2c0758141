"""The self-check passes on the Triton kernels as they are, in Triton's interpreter, and fails on each planted fault."""

import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from adopt_hf.backends import agreement, problem, selfcheck
from adopt_hf.backends import triton as triton_package
from adopt_hf.backends.problem import Kind
from adopt_hf.backends.triton import launch as backend
from adopt_hf.state.formats import Format
from experiments.gpu import interpreter  # noqa: F401

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16
PLAIN = Format(32, 0, False)
SOURCES = {name: Path(backend.__file__).with_name(f"{name}.py") for name in ("kernels", "rounded_kernels")}
QUICK = (({"eps": 0.0, "clip_exp": 0.5, "betas": (0.3, 0.9), "maximize": True}, 8.0, (1, 5)),)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, with a cache folder of its own."""
    monkeypatch.setenv("ADOPT_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selfcheck, "_known", {})


def load(name: str, folder: Path, *changes: tuple[str, str]) -> Any:
    """A copy of a module of kernels, with short chunks and with changes of its text."""
    source = SOURCES[name].read_text()
    source, found = re.subn(r"^CHUNK = tl\.constexpr\(\s*\d+", "CHUNK = tl.constexpr(2048", source, flags=re.MULTILINE)
    assert found == 1
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"planted_{name}", path)
    module = importlib.util.module_from_spec(spec)
    monkey = sys.modules
    monkey[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let the backend run changed kernels, in a small check."""
    reason = backend.why_not(CPU, F32)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(problem, "MANY", 5)
    monkeypatch.setattr(agreement, "GROUPS", QUICK)

    def root(t: Tensor) -> Tensor:  # that of MKL, which torch uses on the CPU, is off in the last place now and then
        exact = [math.sqrt(x) if x >= 0 else math.nan for x in t.flatten().tolist()]
        return torch.tensor(exact, dtype=t.dtype).view(t.shape)

    monkeypatch.setattr(Tensor, "sqrt", root)

    def planted(name: str = "kernels", *changes: tuple[str, str]) -> None:
        modules = {other: load(other, tmp_path, *(changes if other == name else ())) for other in SOURCES}
        monkeypatch.setattr(backend, "_kernels", lambda: modules["kernels"])
        monkeypatch.setattr(triton_package, "rounded_kernels", modules["rounded_kernels"], raising=False)
        monkeypatch.setitem(sys.modules, "adopt_hf.backends.triton.rounded_kernels", modules["rounded_kernels"])

    yield planted
    for name in SOURCES:
        sys.modules.pop(f"planted_{name}", None)


KINDS = {
    "float32": Kind(F32, F32, False, False, PLAIN),
    "bfloat16, coupled": Kind(BF16, BF16, True, False, PLAIN),
    "float64": Kind(torch.float64, torch.float64, True, False, PLAIN),
    "float16 with float32 gradients": Kind(torch.float16, F32, False, False, PLAIN),
    "capturable": Kind(F32, F32, False, True, PLAIN),
    "capturable, no clip": Kind(F32, F32, False, True, PLAIN, clipped=False),
    "8 bits": Kind(BF16, BF16, False, False, Format(8, 256, True)),
    "16 bits": Kind(F32, F32, True, False, Format(16, 0, False)),
}


@pytest.mark.everyday
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_kernel_passes(kind: Kind, plant: Any) -> None:
    plant()
    verdict = selfcheck.check(CPU, kind)
    assert verdict.wrong is None, verdict.wrong


class Fault(NamedTuple):
    kind: str
    module: str
    old: str
    new: str
    seen: str = ""  # in the report


PLAIN_KERNELS, ROUNDED_KERNELS = SOURCES
CLIP = "u = tl.where(u > clip, clip, u)"
COUNT = "tl.minimum(tl.load(column + 5 * tensors) - start, CHUNK)"
FAULTS = {
    "alignment is not asked for": Fault("float32", PLAIN_KERNELS, "& 15) == 0", "& 0) == 0", "multiple_of"),
    "8 bytes are taken for 16": Fault("float32", PLAIN_KERNELS, "& 15) == 0", "& 7) == 0", "multiple_of"),
    "16 bytes are taken for 32": Fault(
        "float32", PLAIN_KERNELS, "tl.multiple_of(m, 16)", "tl.multiple_of(m, 32)", "multiple_of"
    ),
    "a small v is flushed to zero": Fault(
        "float32", PLAIN_KERNELS, "new = exp_avg_sq == 0", "new = exp_avg_sq < 1.1754944e-38", "expected"
    ),
    "roots flush to zero": Fault(
        "float32",
        PLAIN_KERNELS,
        "tl.sqrt_rn(exp_avg_sq)",
        "tl.sqrt_rn(tl.where(exp_avg_sq < 1.1754944e-38, 0.0, exp_avg_sq))",
        "expected",
    ),
    "a small result is flushed to zero": Fault(
        "float32",
        PLAIN_KERNELS,
        "    return theta, exp_avg, exp_avg_sq",
        "    return theta, exp_avg, tl.where(exp_avg_sq < 1.1754944e-38, 0.0, exp_avg_sq)",
        "v of element",
    ),
    "NaN is lost to the bound": Fault("float32", PLAIN_KERNELS, CLIP, "u = tl.where(u < clip, u, clip)", "nan"),
    "the clip is off by one": Fault(
        "float32", PLAIN_KERNELS, CLIP, "u = tl.where(u > clip + 1, clip + 1, u)", "expected"
    ),
    "the clip is of the next step": Fault("capturable", PLAIN_KERNELS, "tl.log2(t)", "tl.log2(t + 1)", "expected"),
    "a clip where there is none": Fault("capturable, no clip", PLAIN_KERNELS, "if clipped:", "if True:", "expected"),
    "decay on the first step": Fault(
        "capturable", PLAIN_KERNELS, "tl.where(t > 0, 1.0 - rate * decoupled, 1.0)", "1.0 - rate * decoupled", "theta"
    ),
    "an observed v of zero is forgotten": Fault(
        "float32",
        PLAIN_KERNELS,
        "tl.where((exp_avg_sq == 0) & (stays == 0), least, exp_avg_sq)",
        "exp_avg_sq",
        "v of element",
    ),
    "the exponent of the warm-up is ignored": Fault(
        "capturable", PLAIN_KERNELS, "tl.exp2(exponent * tl.log2(t + 1.0))", "t + 1.0", "v of element"
    ),
    "an overflow is not skipped": Fault(
        "capturable", PLAIN_KERNELS, "(tl.load(found_inf) == 0)", "(tl.load(found_inf) >= 0)", "was to stay"
    ),
    "a chunk lacks its last element": Fault(
        "float32", PLAIN_KERNELS, COUNT, COUNT.replace("CHUNK", "CHUNK - 1"), "expected"
    ),
    "a chunk has one element more": Fault("float32", PLAIN_KERNELS, "at, at < count", "at, at <= count", ""),
    "a chunk lacks its last block": Fault(
        "8 bits",
        ROUNDED_KERNELS,
        "count = tl.minimum(blocks - first, CHUNK // block_size)",
        "count = tl.minimum(blocks - first, CHUNK // block_size - 1)",
        "expected",
    ),
    "other random bits": Fault(
        "16 bits", ROUNDED_KERNELS, "mixed(place ^ key)", "mixed(place ^ (key + 1))", "expected"
    ),
    "other random bits for parameters": Fault(
        "8 bits", ROUNDED_KERNELS, "mixed(random + GOLDEN)", "mixed(random + GOLDEN + 1)", "theta"
    ),
    "maximize is ignored": Fault(
        "8 bits",
        ROUNDED_KERNELS,
        "scale = tl.full((), scale, tl.float32)",
        "scale = tl.abs(tl.full((), scale, tl.float32))",
        "expected",
    ),
    "rows of odd length are taken for even ones": Fault(
        "8 bits", ROUNDED_KERNELS, "by_four = (columns & 3) == 0", "by_four = (columns & 1) == 0", ""
    ),
}


@pytest.mark.everyday
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_found(fault: Fault, plant: Any) -> None:
    plant(fault.module, (fault.old, fault.new))
    wrong = selfcheck.check(CPU, KINDS[fault.kind]).wrong
    assert wrong is not None
    assert fault.seen in wrong
    assert str(KINDS[fault.kind]) in wrong
