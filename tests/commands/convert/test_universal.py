"""DeepSpeed's universal checkpoints, made by hand as its converter writes them: both of its forms.

tests/processes/test_convert.py has real ones, which DeepSpeed loads.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adopt_hf import ADOPTW
from adopt_hf.commands.convert import layouts
from adopt_hf.commands.convert.conversion import convert, in_a_line
from adopt_hf.state import adamw

NAMES = ("h.0.weight", "h.0.bias")
STEP = torch.tensor(7.0)


def groups(**changes: Any) -> list[dict[str, Any]]:
    """Return AdamW's groups, each with one flat parameter."""
    (group,) = torch.optim.AdamW([torch.ones(1)], lr=1e-3).state_dict()["param_groups"]
    return [group | {"params": [0], "weight_decay": 0.1}, group | {"params": [1], "weight_decay": 0.0} | changes]


def moments(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(len(name))
    m, v = (torch.randn(4, 3, generator=generator) for _ in range(2))
    return {"exp_avg": m, "exp_avg_sq": v.square()}


def write(folder: Path, stage: int, **changes: Any) -> Path:
    """Write a checkpoint: stages 1 and 2 have a step for each parameter, stage 3 one in the inner state."""
    zero = folder / "global_step7_universal" / "zero"
    for name in NAMES:
        (zero / name).mkdir(parents=True)
        torch.save({"cat_dim": 0, "param": torch.ones(4, 3)}, zero / name / "fp32.pt")
        for key, value in moments(name).items():
            torch.save(value.flatten() if stage == 3 else {"cat_dim": 0, "param": value}, zero / name / f"{key}.pt")
        if stage < 3:
            torch.save(STEP, zero / name / "step.pt")
    saved: dict[str, Any] = {"param_groups": groups(**changes), "clip_grad": 1.0}
    if stage == 3:
        state = {i: {"step": STEP, "exp_avg": torch.ones(12), "exp_avg_sq": torch.ones(12)} for i in range(2)}
        saved["optimizer_state_dict"] = {"state": state, "param_groups": groups(**changes)}
    torch.save(saved, zero / "optimizer_state.pt")
    (folder / "global_step7").mkdir()
    (folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"AdamW's")
    (folder / "latest").write_text("global_step7")
    (folder / "latest_universal").write_text("global_step7_universal")
    (folder / "global_step7_universal" / "mp_rank_00_model_states.pt").write_bytes(b"weights")
    (folder / "trainer_state.json").write_text('{"global_step": 7}')
    return folder


def param(file: Any) -> Tensor:
    return file if isinstance(file, Tensor) else file["param"]


@pytest.mark.parametrize("stage", [2, 3])
def test_there_and_back(stage: int, tmp_path: Path) -> None:
    source = write(tmp_path / "run", stage)
    convert(source, "adopt", tmp_path / "adopt")
    convert(tmp_path / "adopt", "adamw", tmp_path / "back")
    zero = Path("global_step7_universal", "zero")
    old = groups()[0]
    new = adamw.adopts_group(old, {})
    for name in NAMES:
        wanted = adamw.adopts_state({"step": STEP, **moments(name)}, old, new, name)
        for key in moments(name):
            there, back, first = (
                torch.load(root / zero / name / f"{key}.pt") for root in (tmp_path / "adopt", tmp_path / "back", source)
            )
            assert torch.equal(param(there).flatten(), wanted[key].flatten())
            assert param(there).shape == param(first).shape
            assert isinstance(there, Tensor) or there["cat_dim"] == 0
            torch.testing.assert_close(param(back), param(first), rtol=4e-7, atol=0)
    saved = torch.load(tmp_path / "adopt" / zero / "optimizer_state.pt")
    for holder in (saved, *([saved["optimizer_state_dict"]] if stage == 3 else [])):
        assert [group["weight_decay"] for group in holder["param_groups"]] == [0.1, 0.0]
        assert all(group["clip_exp"] == 0.25 for group in holder["param_groups"])
    if stage == 3:
        assert saved["optimizer_state_dict"]["state"] == {0: {"step": STEP}, 1: {"step": STEP}}
    assert torch.load(tmp_path / "back" / zero / "optimizer_state.pt")["param_groups"] == groups()
    (tmp_path / "adopt" / "converted.json").unlink()
    convert(tmp_path / "adopt", "adamw", tmp_path / "without record")
    assert torch.load(tmp_path / "without record" / zero / "optimizer_state.pt")["param_groups"] == groups()


def test_what_is_copied(tmp_path: Path) -> None:
    """The weights and the name of the universal folder, but not the state that belongs to a number of processes."""
    source = write(tmp_path / "run", 2)
    assert type(layouts.find(source)) is layouts.Universal
    convert(source, "adopt", tmp_path / "adopt")
    there = {path.relative_to(tmp_path / "adopt").as_posix() for path in (tmp_path / "adopt").rglob("*.*")}
    assert "global_step7_universal/mp_rank_00_model_states.pt" in there
    assert "global_step7_universal/zero/h.0.weight/fp32.pt" in there
    assert "global_step7_universal/zero/h.0.weight/step.pt" in there
    assert not (tmp_path / "adopt" / "global_step7").exists()
    assert not (tmp_path / "adopt" / "latest").exists()
    assert (tmp_path / "adopt" / "latest_universal").read_text() == "global_step7_universal"


def no_groups(zero: Path) -> None:
    torch.save({"clip_grad": 1.0}, zero / "optimizer_state.pt")


def inner_without_groups(zero: Path) -> None:
    torch.save({"param_groups": groups(), "optimizer_state_dict": {"state": {}}}, zero / "optimizer_state.pt")


def groups_of_numbers(zero: Path) -> None:
    torch.save({"param_groups": [1]}, zero / "optimizer_state.pt")


def of_sgd(zero: Path) -> None:
    torch.save({"param_groups": torch.optim.SGD([torch.ones(1)]).param_groups}, zero / "optimizer_state.pt")


def no_tensor(zero: Path) -> None:
    torch.save({"cat_dim": 0}, zero / NAMES[0] / "exp_avg.pt")


def no_moment(zero: Path) -> None:
    (zero / NAMES[0] / "exp_avg_sq.pt").unlink()


def latest_elsewhere(zero: Path) -> None:
    (zero.parents[1] / "latest_universal").write_text("global_step9_universal")


def cut(zero: Path) -> None:
    path = zero / NAMES[0] / "exp_avg_sq.pt"
    path.write_bytes(path.read_bytes()[:-100])


def no_step(zero: Path) -> None:
    (zero / NAMES[0] / "step.pt").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_groups, "optimizer_state.pt is not what DeepSpeed writes: it has no param_groups"),
        (inner_without_groups, "optimizer_state.pt is not what DeepSpeed writes: it has no param_groups"),
        (groups_of_numbers, r"optimizer_state.pt has param_groups \[1\], which must be a list of dicts"),
        (of_sgd, "it is the state of SGD, not of AdamW: its param groups have dampening"),
        (no_tensor, "exp_avg.pt is not what DeepSpeed writes: it holds no tensor"),
        (no_moment, "is not a complete checkpoint: no .*exp_avg_sq.pt"),
        (latest_elsewhere, "latest_universal names 'global_step9_universal', and .*run has no global_step9_universal/"),
        (cut, "exp_avg_sq.pt cannot be read, it is cut off"),
        (no_step, "the state of parameter h.0.weight has step None, which must be a whole number"),
    ],
)
def test_what_cannot_be_converted(spoil: Any, message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "run", 2)
    spoil(source / "global_step7_universal" / "zero")
    with pytest.raises(ValueError, match=message):
        convert(source, "adopt", tmp_path / "adopt")
    assert not (tmp_path / "adopt").exists()


@pytest.mark.parametrize("stage", [2, 3])
def test_each_file_that_is_cut_off(stage: int, tmp_path: Path) -> None:
    """Wherever a file ends too early, it is one line, and nothing is written."""
    source = write(tmp_path / "run", stage)
    before = sorted(tmp_path.rglob("*"))
    for path in [p for p in before if p.is_file()]:
        whole = path.read_bytes()
        is_text = path.suffix in ("", ".json")
        if "model_states" in path.name or "optim_states" in path.name or path.name == "latest":
            continue  # no files of torch here, and one that a universal checkpoint does not need
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=str(path) if is_text else path.name) as error:
                convert(source, "adopt", tmp_path / "adopt")
            assert "\n" not in in_a_line(error.value)
        path.write_bytes(whole)
    assert sorted(tmp_path.rglob("*")) == before
    convert(source, "adopt", tmp_path / "adopt")


@pytest.mark.parametrize("changes", [{"betas": (0.9, 0.95)}, {"eps": 1e-6}], ids=str)
def test_groups_with_different_numbers(changes: dict[str, Any], tmp_path: Path) -> None:
    source = write(tmp_path / "run", 2, **changes)
    with pytest.raises(
        ValueError, match=r"the param groups have different (betas|eps), and the files do not say which"
    ):
        convert(source, "adopt", tmp_path / "adopt")
    with pytest.raises(ValueError, match=r"it is the state of AdamW already"):
        convert(source, "adamw", tmp_path / "adopt")


def test_a_state_in_8_bits_is_no_state_of_floats() -> None:
    """DeepSpeed's converter writes exp_avg only, so that a universal checkpoint has none; the state says so."""
    p = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = ADOPTW([p], state_bits=8)
    p.grad = torch.ones(64, 64)
    optimizer.step()
    state, (group,) = optimizer.state[p], optimizer.state_dict()["param_groups"]
    del state["scales"]
    with pytest.raises(ValueError, match="ADOPT's has exp_avg_codes, exp_avg_sq_codes, scales, step"):
        adamw.adamws_state(state, group, adamw.adamws_group(group, {}, fused=None), "it")
