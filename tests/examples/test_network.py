"""A lost connection is explained below its traceback, and no other error is."""

import argparse
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from adopt_hf.integrations.checkpoints import MARK
from examples.shared import cli, network

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.2]:4711"


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cli, "output_dir", tmp_path)
    monkeypatch.setattr(sys, "argv", ["examples/train.py"])
    monkeypatch.setenv("RANK", "3")
    for name in ("RESTART_COUNT", "MAX_RESTARTS"):
        monkeypatch.delenv(f"TORCHELASTIC_{name}", raising=False)
    return tmp_path


def end_of(error: Exception, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what `cli.run` prints on stderr if a script raises `error`."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 1
    return capsys.readouterr().err.splitlines()


LOST = (
    RuntimeError(GLOO),
    RuntimeError("Application timeout caused pair closure"),  # gloo's without a file
    torch.distributed.DistNetworkError("timed out"),
)


@pytest.mark.parametrize("error", LOST, ids=str)
def test_a_lost_connection_is_explained(error: Exception, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "checkpoint-4").mkdir()
    (output / "checkpoint-4" / MARK).write_text('{"step": 4, "files": {}}')
    *traceback, last = end_of(error, capsys)
    assert str(error) in traceback[-1]
    assert last.startswith("train.py: error: rank 3 (on ")
    assert "has lost the connection to another rank" in last
    assert last.endswith(f"on all machines, with --resume_from_checkpoint last, which is checkpoint-4 in {output}")


def test_the_way_on_depends_on_what_there_is(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no complete checkpoint, so start again" in end_of(RuntimeError(GLOO), capsys)[-1]
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert "torchrun starts all processes again" in end_of(RuntimeError(GLOO), capsys)[-1]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert "start again in another" in end_of(RuntimeError(GLOO), capsys)[-1]


@pytest.mark.parametrize(("use_cpu", "world_size", "made"), [(True, "2", 1), (True, "1", 0), (False, "2", 0)])
def test_ddp_timeout_holds_on_cpus_too(
    use_cpu: bool, world_size: str, made: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(network, "PartialState", lambda **options: calls.append(options))
    monkeypatch.setenv("WORLD_SIZE", world_size)
    network.connect(argparse.Namespace(use_cpu=use_cpu, ddp_backend=None, ddp_timeout=7))
    assert calls == [{"cpu": True, "backend": None, "timeout": timedelta(seconds=7)}] * made


def test_other_errors_are_left_as_they_are(output: Path) -> None:
    def main() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        cli.run(main)
    assert network.explain(ValueError("gloo"), None) is None
