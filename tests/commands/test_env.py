"""`python -m adopt_hf env`: what is there, what runs where, and why something cannot."""

import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from adopt_hf import backends
from adopt_hf.backends import cache, selfcheck
from adopt_hf.backends.cpu import library
from adopt_hf.commands import device_check, main
from adopt_hf.commands import env as environment
from tests.support.processes import python


def env(**environment: str) -> str:
    # Under TRITON_INTERPRET, which the tests set, the Triton kernel takes CPU tensors.
    return python("-m", "adopt_hf", "env", env={"TRITON_INTERPRET": "0"} | environment)


def test_it_names_versions_and_backends() -> None:
    """With the kernel that other tests have compiled."""
    report = env()
    assert f"torch {version('torch')}" in report
    assert str(cache.location()) in report
    on_cpu = report.split("\ncpu: ")[1]
    assert all(f"backend={name!r}: " in on_cpu for name in backends.NAMES)
    if backends.CPU.why_not(torch.device("cpu"), torch.float32) is None:
        assert on_cpu.count(": the compiled CPU kernel\n") == 3  # auto and fused, and auto with 8 bits
        assert f"  the compiled CPU kernel: {library.find().origin}\n" in on_cpu


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="hides the compiler by PATH")
def test_without_a_compiler_it_says_why(tmp_path: Path) -> None:
    report = env(ADOPT_HF_CACHE=str(tmp_path), PATH=str(tmp_path), CC="")
    assert "backend='auto': foreach operations of torch\n" in report
    assert "backend='fused': cannot run: no C compiler was found (looked for cc, gcc, clang" in report
    assert "  the compiled CPU kernel: none: no C compiler was found (looked for cc, gcc, clang" in report


def test_the_check_does_steps_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU, too, where it says so."""
    monkeypatch.setattr(environment, "found_devices", lambda: [torch.device("cpu")])
    text, right = environment.checked(timed=False)
    assert right, text
    assert text.startswith("Python ")
    found = [line for line in text.splitlines() if "PASS" in line]
    assert len(found) >= 2 * len(device_check.FORMS) + 2  # reference, auto, and foreach without 8 bits
    assert all(any(f"backend={name!r}, float32: PASS" in line for line in found) for name in ("auto", "foreach"))
    assert "There is no NVIDIA GPU here, so the Triton kernel is not checked." in text
    assert text.endswith("All is right.")


@pytest.mark.parametrize("fault", ["wrong", "nan", "raises"])
def test_the_check_says_what_differs(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = backends.FOREACH.step

    def wrong(buckets: Any) -> None:
        step(buckets)
        if fault == "raises":
            raise RuntimeError("no such kernel image")
        buckets[0].params[0].view(-1)[0] = torch.nan if fault == "nan" else 9.0

    monkeypatch.setitem(backends.TABLE, "foreach", (backends.FOREACH._replace(step=wrong),))
    lines, right = device_check.check([torch.device("cpu")])
    assert not right
    failed = [line for line in lines if "FAIL" in line]
    assert len(failed) == 2
    assert all("backend='foreach'" in line for line in failed)
    assert {"wrong": "got 9.0", "nan": "got nan", "raises": "RuntimeError: no such kernel image"}[fault] in failed[0]
    assert lines[-1] == "Please put all of this into a bug report."


def test_on_a_gpu_the_kernel_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU that is not there: each kind has a line, and one that fails says what."""
    kinds = []

    def check(device: torch.device, kind: selfcheck.Kind) -> selfcheck.Verdict:
        kinds.append(kind)
        return selfcheck.Verdict("expected 1.0, got 0.0" if kind.capturable and kind.coupled else None)

    monkeypatch.setattr(selfcheck, "check", check)
    monkeypatch.setattr(backends, "TRITON", backends.TRITON._replace(why_not=lambda device, dtype: None))
    monkeypatch.setattr(device_check, "_verdict", lambda device, name, form: "PASS")
    lines, right = device_check.check([torch.device("cuda:0")])
    assert not right
    assert {kind.format.bits for kind in kinds} == {8, 16, 32}
    assert len(set(kinds)) == len(kinds) == sum("parameters of" in line for line in lines)
    failed = [line for line in lines if "FAIL" in line]
    assert len(failed) == 2
    assert all("capturable=True: FAIL expected 1.0, got 0.0" in line for line in failed)
    assert not any("no NVIDIA GPU" in line for line in lines)


def test_other_accelerators_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 1)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Intel X")
    text = environment.report()
    for device in ("xpu:0: Intel X", "mps: "):
        part = text.split(f"\n{device}")[1].split("\n\n")[0]
        assert "backend='auto': foreach operations of torch\n" in part
        assert "backend='auto' with 8-bit moments: the definition, tensor by tensor" in part


def test_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "GPT2", ((30, 5), (5,)))
    lines = device_check.timing(torch.device("cpu"), seconds=0.03)
    assert sum(" ms in " in line or "cannot run" in line for line in lines) == 3
    assert any(line.startswith("  ADOPT foreach: ") and " ms in " in line for line in lines)


@pytest.mark.parametrize(("right", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_it(right: bool, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "checked", lambda timed: ("text", right))
    monkeypatch.setattr(sys, "argv", ["adopt_hf", "env", "--check"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code


def test_the_shapes_are_gpt2s() -> None:
    assert sum(math.prod(shape) for shape in device_check.GPT2) == 124_439_808
