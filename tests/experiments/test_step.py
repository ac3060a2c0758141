"""The command at toy size: every peer has a row, installed or not, and wrong arguments are one line."""

import json
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.harness import fresh
from experiments.step import case, clock, cuda, options, peers, plot, tables, temporaries
from experiments.step import run as step
from experiments.step.peers import EIGHT_BITS, FEW_UNOBSERVED, HALF_UNOBSERVED, PEERS
from experiments.step.rounds import Times
from experiments.step.stepper import Stepper, gradients
from tests.support import processes

ALONE = [name for name, peer in PEERS.items() if peer.module is None]  # what torch and this package have

# In a folder on PYTHONPATH, this hides packages from a process and its children.
HIDE = """
import sys
from importlib.machinery import PathFinder

class Hide(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {names} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hide
"""
OPTIONAL = {peer.module for peer in PEERS.values() if peer.module} | {
    "transformers",
    "accelerate",
    "tqdm",
    "matplotlib",
}


def run(*arguments: str, **environment: str) -> processes.Finished:
    command = ("-m", "experiments", "step", "--scale", "1e-4", "--rounds", "2", "--threads", "1", *arguments)
    # heavyball goes through torch.compile, which takes longer than all else here
    return processes.run(*command, cwd=processes.ROOT, env={"TORCHDYNAMO_DISABLE": "1", **environment})


def rows(path: Path) -> dict[str, dict[str, Any]]:
    (found,) = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return found["rows"]


def is_built() -> bool:
    """Whether DeepSpeed has compiled its optimizer before, which takes minutes."""
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions")).expanduser()
    return any(folder.glob("**/cpu_adam/*.so"))


@pytest.mark.slow
def test_every_installed_peer_has_a_row(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    wanted = [name for name in PEERS if name != "deepspeed-cpu-adam" or is_built()]
    done = run("--shapes", "lora-40m", "--skip-temporaries", "--out", str(out), "--peers", *wanted)
    assert done.returncode == 0, done.stderr
    found = rows(out)
    assert list(found) == wanted
    with peers.searching(peers.default_folder()):
        here = {name for name in wanted if peers.installed(PEERS[name])}
    assert {name for name, row in found.items() if row["why"] == "not installed"} == set(wanted) - here
    for name in here:
        row = found[name]
        assert row["why"] or row["ms"]["median"] > 0, name
        assert PEERS[name].title in done.stdout
    assert all(not found[name]["why"] for name in ("adopt_hf", "adopt_hf-foreach", "adamw-fused", "adamw-single"))
    assert out.with_suffix(".png").exists()


@pytest.mark.slow
def test_torch_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(HIDE).format(names=OPTIONAL), encoding="utf-8")
    out = tmp_path / "step.json"
    done = run(
        "--shapes", "flat-124m", "--peers", "timm", "--skip-temporaries", "--out", str(out), PYTHONPATH=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert {name: row["why"] for name, row in rows(out).items()} == {
        "adopt_hf": "",
        "adamw-fused": "",
        "timm": "not installed",
    }
    assert "no plot: matplotlib is not installed" in done.stderr
    assert "[1/1] flat-124m fp32, threads 1: rounds" in done.stderr


def here_instead(function: Callable[..., Any], environment: Any, **arguments: Any) -> Any:
    """`fresh.call` without a process; through JSON like it."""
    return json.loads(json.dumps(function(**json.loads(json.dumps(arguments)))))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fresh, "call", here_instead)
    monkeypatch.setattr(plot, "bars", lambda result, path: "no plot")


def toy(out: Path, *arguments: str) -> Sequence[str]:
    common = ["--scale", "1e-4", "--rounds", "2", "--skip-temporaries", "--out", str(out)]
    return [*common, "--threads", str(torch.get_num_threads()), *arguments]


@pytest.mark.usefixtures("in_process")
def test_a_peer_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        raise ValueError("planted,\nin two lines")

    def breaks_at_step(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params)
        optimizer.step = lambda: 1 / 0
        return optimizer

    monkeypatch.setitem(PEERS, "adamw-single", PEERS["adamw-single"]._replace(make=broken))
    monkeypatch.setitem(PEERS, "adamw-foreach", PEERS["adamw-foreach"]._replace(make=breaks_at_step))
    out = tmp_path / "step.json"
    assert step.main(toy(out, "--shapes", "gpt2-124m", "--peers", "adamw-single", "adamw-foreach")) == 0
    assert {name: row["why"] for name, row in rows(out).items()} == {
        "adopt_hf": "",
        "adamw-fused": "",
        "adamw-foreach": "ZeroDivisionError: division by zero",
        "adamw-single": "ValueError: planted, in two lines",
    }


@pytest.mark.skipif(not temporaries.measurable(), reason="reads the peak of the resident set from /proc")
@pytest.mark.usefixtures("in_process")
def test_a_peer_whose_process_dies_is_a_row_and_in_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(function: Callable[..., Any], environment: Any, **arguments: Any) -> Any:
        if arguments.get("peer") == "adamw-single":
            raise RuntimeError("the process ended with -11")
        assert "adamw-single" not in arguments.get("peers", ())
        return here_instead(function, environment, **arguments)

    monkeypatch.setattr(fresh, "call", dies)
    out = tmp_path / "step.json"
    arguments = [argument for argument in toy(out, "--shapes", "flat-124m") if argument != "--skip-temporaries"]
    assert step.main([*arguments, "--peers", "adamw-single"]) == 0
    found = rows(out)
    assert found["adamw-single"] == {"why": "the process ended with -11"}
    assert isinstance(found["adamw-fused"]["temporaries_bytes"], int)
    assert found["adamw-fused"]["ms"]["median"] > 0


@pytest.mark.usefixtures("in_process")
def test_a_case_whose_process_dies_has_rows_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(function: Callable[..., Any], environment: Any, **arguments: Any) -> Any:
        raise RuntimeError("the process ended with -11")

    monkeypatch.setattr(fresh, "call", dies)
    out = tmp_path / "step.json"
    assert step.main(toy(out, "--shapes", "gpt2-124m", "--peers", "adamw-fused")) == 0
    assert {row["why"] for row in rows(out).values()} == {"the rounds of all failed: the process ended with -11"}


@pytest.mark.usefixtures("in_process")
def test_bf16_has_float32_moments_and_fewer_bytes(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    assert step.main(toy(out, "--shapes", "flat-124m", "--dtypes", "bf16", "--peers", "adopt_hf")) == 0
    found = json.loads(out.read_text(encoding="utf-8"))["cases"][0]
    assert found["bytes"] == 22 * found["elements"]
    assert found["rows"]["adopt_hf"]["why"] == ""


def test_unobserved_elements_never_have_a_gradient() -> None:
    """The share that the peer names, the same elements in every step; all others have the gradients that all share."""
    grads = [torch.ones(200, 256), torch.ones(7)]
    dense, half = (Stepper(PEERS[name], grads, None) for name in (EIGHT_BITS, HALF_UNOBSERVED))
    for stepper in (dense, half):
        for _ in range(2):
            stepper.give_gradients()
            stepper.step()
    for p, g in zip(dense.params, grads, strict=True):
        assert p.grad is g
    codes = half.optimizer.state[half.params[0]]["exp_avg_sq_codes"]
    assert 0.45 < (codes == 0).float().mean() < 0.55
    assert torch.equal(codes == 0, half.params[0].grad == 0)
    assert PEERS[FEW_UNOBSERVED].unobserved == 1 / 256


@pytest.mark.usefixtures("in_process")
def test_a_row_of_unobserved_elements_is_compared_with_the_dense_one(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    assert step.main(toy(out, "--shapes", "flat-124m", "--peers", EIGHT_BITS, HALF_UNOBSERVED)) == 0
    found = rows(out)
    assert found[HALF_UNOBSERVED]["to_dense"]["median"] > 0
    assert "to_dense" not in found[EIGHT_BITS]


def test_bytes_of_float32() -> None:
    assert case.head("cpu", "flat-124m", "fp32", 1.0, 1)["bytes"] == 28 * 124_439_808


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "adam"], "invalid choice: 'adam' (choose from"),
        (["--shapes", "gpt3"], "invalid choice: 'gpt3' (choose from"),
        (["--dtypes", "fp16"], "invalid choice: 'fp16' (choose from"),
        (["--device", "tpu"], "invalid choice: 'tpu' (choose from"),
        (["--scale", "2"], "must be in (0, 1], got 2"),
        (["--threads", "0"], "must be 1 or more, got 0"),
    ],
)
def test_wrong_names_list_what_is_allowed(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        step.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said.replace('"', "'")
    allowed = {"--peers": PEERS, "--shapes": step.SHAPES, "--dtypes": step.DTYPES, "--device": ("cpu", "cuda")}
    assert all(name in said for name in allowed.get(arguments[0], ()))


def test_a_gpu_that_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        step.main(["--device", "cuda"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "python -m experiments step: error: --device cuda, but torch finds no GPU here\n"


def test_numbers_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, new = tmp_path / "there.json", tmp_path / "new.json"
    there.touch()
    parser = step._parser()
    assert options.target(parser, None, new) == options.target(parser, new, there) == new
    with pytest.raises(SystemExit) as ended:
        options.target(parser, there, new)
    assert ended.value.code == 2
    assert "name another file with --out" in capsys.readouterr().err


def test_optimizers_are_made_in_a_drawn_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of a row's tensors in memory depends on those made before it; the rows stay in their order."""
    made: list[str] = []

    def noting(name: str, make: Any) -> Any:
        return lambda params: (made.append(name), make(params))[1]

    names = ["adopt_hf", "adamw-fused", "adamw-single"]
    for name in names:
        monkeypatch.setitem(PEERS, name, PEERS[name]._replace(make=noting(name, PEERS[name].make)))
    grads = [torch.ones(3)]
    orders = set()
    for seed in range(8):
        made.clear()
        _, found = case._steppers(names, grads, None, seed)
        assert list(found) == names
        assert sorted(made) == sorted(names)
        orders.add(tuple(made))
    assert len(orders) > 2


def test_the_command_in_the_docs_names_no_folder() -> None:
    given = ["--device", "cpu", "--out", "/somewhere/x.json", "--peers-path=/elsewhere", "--threads", "1", "2"]
    assert options.command("step", given) == "python -m experiments step --device cpu --threads 1 2"


def test_peers_apart_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "kept_apart.py").write_text("", encoding="utf-8")
    peer = PEERS["timm"]._replace(module="kept_apart")
    with peers.searching(tmp_path):
        assert peers.installed(peer)
    assert not peers.installed(peer)


def test_timm_is_not_left_behind() -> None:
    with peers.searching(peers.default_folder()):
        if not peers.installed(PEERS["timm"]):
            pytest.skip("timm is not installed; `make test` puts it into .venv/peers")
        optimizer = PEERS["timm"].make([torch.nn.Parameter(torch.ones(3))])
    assert type(optimizer).__name__ == "Adopt"
    assert not any(name.split(".")[0] == "timm" for name in sys.modules)


def test_a_case_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what the GPU itself would say: planted here, the tensors on the CPU, room for one peer at a time."""
    monkeypatch.setattr(case, "gradients", lambda sizes, dtype, device, seed: gradients(sizes, dtype, "cpu", seed))
    monkeypatch.setattr(case, "_available", lambda device: 0)
    monkeypatch.setattr(case, "_release", lambda device: None)
    monkeypatch.setattr(cuda, "copy_rate", lambda: 4e12)
    monkeypatch.setattr(temporaries, "on_cuda", lambda step: 123)
    monkeypatch.setattr(clock, "on_cuda", lambda step: (step(), Times(ms=0.5, wall_ms=0.6, cpu_ms=0.4, host_ms=0.3))[1])
    counts = iter([3, 2])

    def launches(step: Callable[[], object]) -> int:
        step()
        try:
            return next(counts)
        except StopIteration:
            raise RuntimeError("planted: no rights") from None

    monkeypatch.setattr(cuda, "launches", launches)
    wanted = ["adopt_hf", "adamw-fused", "adamw-foreach", "adamw-single"]
    common = {"threads": None, "scale": 1e-4, "rounds": 2, "seed": 0, "peers_path": None}
    found = case.measure(device="cuda", dtype="fp32", shape="flat-1b", peers=wanted, **common)
    row = found["rows"]["adamw-foreach"]
    assert row["copy_share"] == pytest.approx(28 * 1e5 / 0.5e-3 / 4e12)
    assert (row["temporaries_bytes"], row["host_ms"]["median"], row["to_ours"]["median"]) == (123, 0.3, 1)
    assert found["rows"]["adamw-fused"]["launches"] == 3
    assert found["rows"]["adopt_hf"]["launches"] == 2
    assert row["why"] == ""
    assert row["notes"] == ["launches not counted: RuntimeError: planted: no rights"]
    assert list(found["rows"]) == ["adamw-fused", "adopt_hf", "adamw-foreach", "adamw-single"]
    assert tables.step_table([found], "cuda").count("adopt_hf") == 2


def test_kernels_of_a_trace_are_counted_and_copies_are_not() -> None:
    trace = [{"cat": "kernel"}, {"cat": "gpu_memcpy"}, {"cat": "gpu_user_annotation"}, {"ph": "M"}, {"cat": "kernel"}]
    assert cuda.kernels(trace) == 2


@pytest.mark.usefixtures("in_process")
def test_a_run_that_is_cut_short_keeps_its_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([here_instead])

    def once(*arguments: Any, **named: Any) -> Any:
        try:
            return next(left)(*arguments, **named)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(fresh, "call", once)
    out = tmp_path / "step.json"
    with pytest.raises(KeyboardInterrupt):
        step.main(toy(out, "--shapes", "flat-124m", "gpt2-124m", "--peers", "adamw-fused"))
    assert rows(out)["adamw-fused"]["why"] == ""
