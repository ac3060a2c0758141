"""The Triton kernel is used on a GPU only after it has agreed with the definition there.

What "auto" and "fused" make of a verdict; one warning; what is kept on disk, and what is not believed. The check itself
is tested in test_agreement.py.

There is no GPU here: where one is needed, what torch and the driver would say is replaced.
"""

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from adopt_hf import ADOPT, backends
from adopt_hf.backends import capture, selfcheck, verdicts
from adopt_hf.backends.problem import Kind, Wrong
from adopt_hf.backends.triton import launch as backend
from adopt_hf.backends.verdicts import Verdict
from adopt_hf.state.formats import Format
from experiments.gpu import interpreter  # noqa: F401

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
F32, BF16 = torch.float32, torch.bfloat16
EIGHT_BITS = Format(8, 256, False)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, with a cache folder of its own."""
    monkeypatch.setenv("ADOPT_HF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selfcheck, "_known", {})
    monkeypatch.setattr(backends, "_said", set())
    verdicts._warn.cache_clear()


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*"))


class Gpu:
    """A GPU, as far as the choice of a backend sees one; `finds` is raised by the check."""

    finds: Exception | None = None
    checks = 0
    alive = True

    def run(self, device: torch.device, kind: Kind) -> None:
        self.checks += 1
        if self.finds is not None:
            raise self.finds

    def choose(self, name: str = "auto", **more: Any) -> backends.Backend:
        return backends.choose(name, CUDA, F32, **more)

    def new_process(self) -> None:
        selfcheck._known.clear()
        backends._said.clear()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu()
    about = {"GPU": "NVIDIA X (9.0)", "driver": "550.1 CUDA 12040", "torch": "2.13", "Triton": "3.7.1", "source": "1"}
    monkeypatch.setattr(backend, "why_not", lambda device, dtype: None)
    monkeypatch.setattr(backends, "TRITON", backends.TRITON._replace(why_not=lambda device, dtype: None))
    for name, table in backends.TABLE.items():
        monkeypatch.setitem(
            backends.TABLE, name, tuple(backends.TRITON if b.words == "the Triton kernel" else b for b in table)
        )
    monkeypatch.setattr(selfcheck, "machine", lambda device: dict(about))
    monkeypatch.setattr(selfcheck, "_undisturbed", lambda device: torch.no_grad())
    monkeypatch.setattr(selfcheck, "_is_alive", lambda device: found.alive)
    monkeypatch.setattr(selfcheck, "run", found.run)
    return found


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_auto_is_the_kernel_once_it_has_passed(gpu: Gpu, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for more in ({}, {"format": EIGHT_BITS}, {"capturable": True}):
        for _ in range(2):
            assert gpu.choose(**more) is backends.TRITON
    assert gpu.checks == len(kept(tmp_path)) == 3
    gpu.new_process()
    assert gpu.choose() is backends.TRITON
    assert gpu.checks == 3
    assert gpu.choose(plain=False) is backends.FOREACH
    assert gpu.choose(plain=False, capturable=True) is backends.REFERENCE
    assert gpu.checks == 3
    assert warnings_of(caplog) == []


@pytest.mark.parametrize(
    ("difference", "again"),
    [
        ({"grad_dtype": BF16}, True),
        ({"coupled": True}, True),
        ({"format": Format(8, 128, False)}, True),
        ({"format": Format(32, 128, False)}, False),  # without codes it has no blocks
        ({"clipped": False}, False),  # the clip is a number of the kernel
        ({"capturable": True, "clipped": False}, True),  # it is not
    ],
)
def test_each_kind_is_checked(difference: dict[str, Any], again: bool, gpu: Gpu) -> None:
    gpu.choose(capturable=difference.get("capturable", False))
    gpu.choose(**difference)
    assert gpu.checks == 1 + again


def test_an_optimizer_asks_for_the_kind_that_it_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when a weight decay that a schedule has changed makes it another one, though its plan is kept."""
    asked = []

    def choose(*args: Any, to_use: bool = True, **more: Any) -> backends.Backend:
        if to_use:
            asked.append((*args[1:], more["grad_dtype"], more["coupled"], more["format"].bits, more["capturable"]))
        return chosen(*args, to_use=to_use, **more)

    chosen = backends.choose
    monkeypatch.setattr(backends, "choose", choose)
    p = torch.nn.Parameter(torch.ones(5000, dtype=BF16))
    optimizer = ADOPT([p], weight_decay=0.1, decouple=True, state_bits=8)
    for group in ({}, {}, {"decouple": False}, {"decouple": False}, {"weight_decay": 0.0}):
        optimizer.param_groups[0].update(group)
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert list(dict.fromkeys(asked)) == [(CPU, BF16, BF16, coupled, 8, False) for coupled in (False, True)]
    assert [kind[3] for kind in asked] in ([False, True, False], [False, False, True, False])


def test_a_capturable_optimizer_without_a_clip_asks_for_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(*args: Any, **more: Any) -> backends.Backend:
        if more.get("to_use", True):
            asked.append(more["clipped"])
        return chosen(*args, **more)

    chosen = backends.choose
    monkeypatch.setattr(backends, "choose", choose)
    p = torch.nn.Parameter(torch.ones(5))
    optimizer = ADOPT([p], capturable=True)
    for clip_exp in (0.25, 0.25, None, None, 0.5):
        optimizer.param_groups[0]["clip_exp"] = clip_exp
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert list(dict.fromkeys(asked)) == [True, False]


def test_a_construction_checks_nothing(gpu: Gpu) -> None:
    assert gpu.choose(to_use=False) is backends.TRITON
    assert gpu.checks == 0


@pytest.mark.parametrize(
    "finds", [Wrong("v of element 3: expected 1.0, got 0.0"), ValueError("no such instruction"), OSError("no gcc")]
)
def test_where_it_fails_auto_falls_back_with_one_warning(
    finds: Exception, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.finds = finds
    for grad_dtype in (F32, BF16):
        assert gpu.choose(grad_dtype=grad_dtype) is backends.FOREACH
    assert gpu.choose(format=EIGHT_BITS) is backends.REFERENCE
    (said,) = warnings_of(caplog)
    assert str(finds) in said
    for part in ("NVIDIA X", "550.1", "2.13", "3.7.1", "torch.float32", "env --check` prints into a bug report"):
        assert part in said
    assert "foreach operations of torch" in said


@pytest.mark.parametrize("finds", [Wrong("expected 1.0, got 0.0"), RuntimeError("PassManager::run failed")])
def test_where_it_fails_fused_raises(finds: Exception, gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    gpu.finds = finds
    with pytest.raises(RuntimeError, match=rf"backend='fused' cannot run.*{finds}.*Allowed here: 'auto', 'foreach'"):
        gpu.choose("fused")
    assert warnings_of(caplog) == []


def test_a_wrong_result_is_remembered_and_a_missing_compiler_is_not(gpu: Gpu) -> None:
    gpu.finds = Wrong("expected 1.0, got 0.0")
    gpu.choose()
    gpu.new_process()
    assert gpu.choose() is backends.FOREACH
    assert gpu.checks == 1
    gpu.finds = OSError("no gcc")
    gpu.choose(coupled=True)
    gpu.new_process()
    gpu.finds = None
    assert gpu.choose(coupled=True) is backends.TRITON


def test_a_device_that_the_check_has_broken_ends_the_process_and_not_the_next(gpu: Gpu) -> None:
    """After an illegal address nothing runs on a GPU any more."""
    gpu.finds, gpu.alive = RuntimeError("CUDA error: misaligned address"), False
    with pytest.raises(RuntimeError, match=r"misaligned address.*start the program again.*without the Triton kernel"):
        gpu.choose()
    gpu.new_process()
    assert gpu.choose() is backends.FOREACH
    assert gpu.checks == 1


def test_in_a_graph_what_was_not_checked_raises(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "is_capturing", lambda: True)
    for name in ("auto", "fused"):
        with pytest.raises(RuntimeError, match=r"run a few steps before the capture, or `python -m adopt_hf env --che"):
            gpu.choose(name, capturable=True)
    assert gpu.checks == 0
    monkeypatch.setattr(capture, "is_capturing", lambda: False)
    gpu.choose(capturable=True)
    gpu.new_process()
    monkeypatch.setattr(capture, "is_capturing", lambda: True)
    assert gpu.choose(capturable=True) is backends.TRITON  # the verdict of another process will do


# -- on disk ----------------------------------------------------------------------------------------------------------

ABOUT = {"GPU": "NVIDIA X", "kind": "parameters of torch.float32"}


def test_a_verdict_is_kept(tmp_path: Path) -> None:
    for wrong in ("expected 1, got 0", None):
        verdicts.write(ABOUT, Verdict(wrong))
        assert verdicts.read(ABOUT) == Verdict(wrong)
    assert len(kept(tmp_path)) == 1
    assert verdicts.read(ABOUT | {"GPU": "NVIDIA Y"}) is None


def _changed(text: str, **new: Any) -> bytes:
    return json.dumps(json.loads(text) | new).encode()


DAMAGES: dict[str, Any] = {
    "cut in half": lambda text: text[: len(text) // 2].encode(),
    "empty": lambda text: b"",
    "not text": lambda text: b"\xff\xfe\x00" * 9,
    "a verdict changed by hand": lambda text: text.replace('"expected 1, got 0"', "null").encode(),
    "of another GPU": lambda text: text.replace("NVIDIA X", "NVIDIA Y").encode(),
    "a list": lambda text: b"[1]",
    "deeply nested": lambda text: b"[" * 60_000,
    "huge": lambda text: text.encode() + b" " * 10**6,
    "a number": lambda text: _changed(text, wrong=3),
    "more keys": lambda text: _changed(text, more=3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_forged_file_is_not_believed(damage: Any, tmp_path: Path) -> None:
    verdicts.write(ABOUT, Verdict("expected 1, got 0"))
    (path,) = kept(tmp_path)
    path.write_bytes(damage(path.read_text()))
    assert verdicts.read(ABOUT) is None
    verdicts.write(ABOUT, Verdict(None))
    assert verdicts.read(ABOUT) == Verdict(None)


@pytest.mark.parametrize("what", ["folder for others", "file for others", "link"])
def test_what_others_could_have_written_is_not_believed(
    what: str, tmp_path: Path, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.choose()
    (path,) = kept(tmp_path)
    if what == "folder for others":
        path.parent.chmod(0o777)
    elif what == "file for others":
        path.chmod(0o666)
    else:
        path.rename(tmp_path / "other")
        path.symlink_to(tmp_path / "other")
    gpu.new_process()
    assert gpu.choose() is backends.TRITON
    assert gpu.checks == 2
    assert any("is not cached" in said for said in warnings_of(caplog)) == (what == "folder for others")


def test_a_folder_that_cannot_be_written_costs_a_check_each_process(
    tmp_path: Path, gpu: Gpu, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    for _ in range(2):
        assert gpu.choose() is backends.TRITON
        assert gpu.choose(coupled=True) is backends.TRITON
        gpu.new_process()
    assert gpu.checks == 4
    (said,) = warnings_of(caplog)
    assert "every process checks it again" in said
    assert "Set ADOPT_HF_CACHE to another folder" in said


def test_many_write_and_read_at_once(tmp_path: Path) -> None:
    wrongs = [None, "a" * 5000]
    found = []

    def work(i: int) -> None:
        for _ in range(20):
            verdicts.write(ABOUT, Verdict(wrongs[i % 2]))
            found.append(verdicts.read(ABOUT))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {verdict.wrong for verdict in found} == set(wrongs)
    assert len(kept(tmp_path)) == 1


# -- bad surroundings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["raise AttributeError('half installed')", "1 / 0", "__version__ = 'main'", "", "raise OSError('libcuda')"],
)
def test_a_triton_that_is_broken_is_a_reason(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At import, or without a version."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    backend._kernels.cache_clear()
    try:
        assert str(backend.why_not(CUDA, F32)).startswith("Triton cannot be imported (")
    finally:
        backend._kernels.cache_clear()


def test_without_the_kernel_auto_says_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backend, "_kernels", lambda: "the Triton kernel needs Triton 3.6 or later, this is 3.2.0")
    for _ in range(2):
        assert backends.choose("auto", CUDA, F32) is backends.FOREACH
        assert backends.choose("auto", CUDA, F32, format=EIGHT_BITS) is backends.REFERENCE
        assert backends.choose("auto", torch.device("mps"), F32) is backends.FOREACH  # where there is none to miss
        assert backends.choose("auto", torch.device("mps"), F32, format=EIGHT_BITS) is backends.REFERENCE
    said = warnings_of(caplog)
    assert len(said) == 3
    assert "Triton 3.6 or later" in said[0]
    assert "Triton 3.6 or later" in said[1]
    assert "there is no kernel for mps tensors" in said[2]


def test_a_gpu_that_is_taken_away_between_two_steps_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the driver's own words; nothing is counted, and no other backend goes on with half of an update."""
    if backend.why_not(CPU, F32) is not None:
        pytest.skip("the Triton kernel does not run here")
    monkeypatch.setitem(backends.TABLE, "auto", (backends.TRITON._replace(of_devices=("cpu",)), backends.FOREACH))
    p = torch.nn.Parameter(torch.ones(5))
    optimizer = ADOPT([p])
    for _ in range(2):
        p.grad = torch.ones(5)
        optimizer.step()
    before = p.detach().clone()

    class Gone:
        def __getitem__(self, grid: Any) -> Any:
            raise RuntimeError("CUDA error: no CUDA-capable device is detected")

    monkeypatch.setattr(backend._kernels(), "update", Gone())
    with pytest.raises(RuntimeError, match="no CUDA-capable device"):
        optimizer.step()
    assert torch.equal(p, before)
    assert optimizer.state[p]["step"] == 2
