"""The check of a library: its answers are the definition's, and wrong libraries are found."""

import ctypes
import math
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adopt_hf import backends
from adopt_hf.algorithm import StepScalars
from adopt_hf.backends.bucket import Bucket, RoundedBucket
from adopt_hf.backends.cpu import answers, launch, source
from adopt_hf.backends.cpu.call import TYPES, declared
from adopt_hf.state.formats import Format


def of_the_definition(kind: answers.Kind, monkeypatch: pytest.MonkeyPatch) -> list[bytearray]:
    """Return the memory after a step of the reference, with a correctly rounded root."""

    def root(t: Tensor) -> Tensor:  # rounding twice, to double and then to single precision, is rounding once
        return torch.tensor([math.sqrt(x) for x in t.flatten().tolist()], dtype=torch.float64).view(t.shape).to(t.dtype)

    monkeypatch.setattr(Tensor, "sqrt", root)
    memory = answers.tensors(kind)
    type = TYPES[kind.param_type]
    moments = {0: torch.float64 if kind.param_type == 3 else torch.float32, 8: torch.uint8, 16: torch.bfloat16}
    dtypes = (type, type, moments[kind.bits], moments[kind.bits], torch.float32)
    p, g, m, v, scales = (
        [torch.frombuffer(x, dtype=dtype)] if x else [] for x, dtype in zip(memory, dtypes, strict=True)
    )
    s = StepScalars(**answers.SCALARS)
    if kind.bits or kind.round_param:
        format = Format(kind.bits, kind.block_size, bool(kind.round_param))
        scales = [x.view(1, -1, 3) for x in scales]
        bucket = RoundedBucket(p, g, m, v, scales, [answers.KEY], format, s)
        assert backends.REFERENCE.step_rounded
        backends.REFERENCE.step_rounded([bucket])
    else:
        backends.REFERENCE.step([Bucket(p, g, m, v, s)])
    return memory


@pytest.mark.parametrize("kind", answers.ANSWERS, ids=answers._name)
def test_the_answers_are_those_of_the_definition(kind: answers.Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = of_the_definition(kind, monkeypatch)
    assert all(a != b for a, b in zip(expected, answers.tensors(kind), strict=True) if a and a is not expected[1])
    assert answers.digest(expected) == answers.ANSWERS[kind]


@pytest.mark.everyday
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, cc")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), []),
        (("-O2", "-mfma", "-ffp-contract=fast"), ["float32", "bfloat16", "float16", "float64"]),
        (("-ffast-math",), ["float32"]),
    ],
    ids=["right", "contracted", "fast math"],
)
def test_libraries_that_compute_other_numbers_are_found(
    options: tuple[str, ...], expected: list[str], tmp_path: Path
) -> None:
    if "-mfma" in options and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("names an instruction of x86")
    path = tmp_path / "kernel.so"
    flags = [flag for flag in source.FLAGS if flag != "-O3"]
    command = ["cc", *flags, "-O1", *options, "-shared", "-fPIC", "-pthread", "-o", path, source.KERNEL, "-lm"]
    subprocess.run(command, check=True)
    found = answers.wrong(declared(ctypes.CDLL(str(path))))
    assert found == [] if not expected else set(expected) <= set(found)


@pytest.mark.skipif(launch.why_not(torch.device("cpu"), torch.float32) is not None, reason="there is no kernel here")
def test_flushed_subnormal_numbers_change_no_answer() -> None:
    """A process may have told its processor to flush them."""
    library = launch._library()
    assert isinstance(library, ctypes.CDLL)
    assert torch.set_flush_denormal(True)
    try:
        assert answers.wrong(library) == []
    finally:
        torch.set_flush_denormal(False)
