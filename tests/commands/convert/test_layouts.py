"""FSDP's checkpoints, whole and sharded, as Accelerate writes and loads them; in one process of FSDP2.

tests/processes/test_convert.py has them on two processes, with the Trainer, and DeepSpeed's universal ones.
"""

import copy
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import save_fsdp_optimizer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from adopt_hf import ADOPTW
from adopt_hf.commands.convert import layouts
from adopt_hf.commands.convert.conversion import convert
from adopt_hf.integrations.checkpoints import MARK
from adopt_hf.state import adamw

KINDS = {"FULL_STATE_DICT": "optimizer.bin", "SHARDED_STATE_DICT": "optimizer_0"}


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def sharded(cls: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = cls(groups, lr=1e-2)
    for _ in range(3):
        model(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def others(checkpoint: Path) -> None:
    """Write the other files that a complete checkpoint has."""
    torch.save({"step": 3}, checkpoint / "random_states_0.pkl")
    torch.save({"weight": torch.ones(2)}, checkpoint / "pytorch_model_fsdp.bin")


def states(optimizer: Any) -> list[dict[str, Any]]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    found = ({name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in optimizer.state[p].items()}
             for p in params)  # fmt: skip
    return [copy.deepcopy(state) for state in found]


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6 has no FSDP2 on a CPU")
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("kind", KINDS)
def test_fsdp_goes_on_and_back(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("FSDP_VERSION", "2")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind)
    accelerator = Accelerator(cpu=True)
    load = sys.modules["accelerate.accelerator"].load_fsdp_optimizer
    model, optimizer = sharded(torch.optim.AdamW)
    source = tmp_path / "state"
    source.mkdir()
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(source))
    others(source)
    assert type(layouts.find(source)) is (layouts.Whole if kind == "FULL_STATE_DICT" else layouts.Sharded)
    convert(source, "adopt", tmp_path / "adopt")
    assert (tmp_path / "adopt" / KINDS[kind]).exists()
    assert not (tmp_path / "adopt" / MARK).exists()  # the layout is not known without a mark
    adopt_model, adopt = sharded(ADOPTW)
    load(plugin, accelerator, adopt, adopt_model, str(tmp_path / "adopt"))
    theirs, group = states(optimizer), optimizer.param_groups[0]
    new = adamw.adopts_group({name: value for name, value in group.items() if name != "params"}, {})
    for state, old in zip(states(adopt), theirs, strict=True):
        wanted = adamw.adopts_state(old, group, new, "it")
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert [g["weight_decay"] for g in adopt.param_groups] == [0.1, 0.0]
    assert {(g["betas"], g["decouple"], g["beta2_warmup"]) for g in adopt.param_groups} == {((0.9, 0.9999), True, 1.0)}
    adopt.step()
    convert(tmp_path / "adopt", "adamw", tmp_path / "back")
    again_model, again = sharded(torch.optim.AdamW)
    load(plugin, accelerator, again, again_model, str(tmp_path / "back"))
    for state, old in zip(states(again), theirs, strict=True):
        for name, value in old.items():
            torch.testing.assert_close(state[name], value, rtol=4e-7, atol=0)


@pytest.mark.usefixtures("one_process")
def test_a_part_that_is_missing(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3), "step": torch.tensor(1.0)}
    group = torch.optim.AdamW([nn.Parameter(torch.ones(3))]).state_dict()["param_groups"][0] | {"params": ["w"]}
    save({"optimizer": {"state": {"w": state}, "param_groups": [group]}}, checkpoint_id=tmp_path / "state/optimizer_0")
    others(tmp_path / "state")
    convert(tmp_path / "state", "adopt", tmp_path / "new")
    next((tmp_path / "state" / "optimizer_0").glob("*.distcp")).unlink()
    with pytest.raises(
        ValueError, match=r"optimizer_0 cannot be read, a file is cut off or missing: .*distcp is missing"
    ):
        convert(tmp_path / "state", "adopt", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("kind", KINDS)
def test_each_file_that_is_cut_off(kind: str, tmp_path: Path) -> None:
    """Of the optimizer's state and of the weights, wherever it ends: one line, and nothing is written."""
    from torch.distributed.checkpoint.state_dict_saver import save

    state = {"exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3), "step": torch.tensor(1.0)}
    group = torch.optim.AdamW([nn.Parameter(torch.ones(3))]).state_dict()["param_groups"][0] | {"params": ["w"]}
    saved = {"state": {"w": state}, "param_groups": [group]}
    source = tmp_path / "state"
    source.mkdir()
    others(source)
    if kind == "FULL_STATE_DICT":
        torch.save(saved, source / "optimizer.bin")
    else:
        (source / "pytorch_model_fsdp.bin").unlink()
        save({"optimizer": saved}, checkpoint_id=source / "optimizer_0")
        save({"model": {"w": torch.ones(3)}}, checkpoint_id=source / "pytorch_model_fsdp_0")
    before = sorted(tmp_path.rglob("*"))
    for path in [p for p in before if p.is_file() and p.name != "store"]:
        whole = path.read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=r"cut off") as error:
                convert(source, "adopt", tmp_path / "new")
            assert path.name in str(error.value)
        path.write_bytes(whole)
    assert sorted(tmp_path.rglob("*")) == before
    convert(source, "adopt", tmp_path / "new")


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("of", ["model", "no groups", "a tensor", "SGD"])
def test_distributed_checkpoints_of_something_else(of: str, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    w = nn.Parameter(torch.ones(3))
    group = torch.optim.SGD([w]).state_dict()["param_groups"][0] | {"params": ["w"]}
    saved: dict[str, dict[str, Any]] = {
        "model": {"model": {"w": torch.ones(3)}},
        "no groups": {"optimizer": {"state": {"w": {"exp_avg": torch.ones(3)}}}},
        "a tensor": {"optimizer": torch.ones(3)},  # type: ignore[dict-item]
        "SGD": {"optimizer": {"state": {"w": {"momentum_buffer": torch.ones(3)}}, "param_groups": [group]}},
    }
    save(saved[of], checkpoint_id=tmp_path / "state" / "optimizer_0")
    others(tmp_path / "state")
    message = (
        "it is the state of SGD, not of AdamW" if of == "SGD" else "optimizer_0 is not the state of an optimizer: "
    )
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "state", "adopt", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("one_process")
def test_an_object_of_a_missing_class_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    module = types.ModuleType("gone_since")
    module.Thing = type("Thing", (), {"__module__": "gone_since"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gone_since", module)
    group = torch.optim.AdamW([nn.Parameter(torch.ones(3))]).state_dict()["param_groups"][0] | {"params": ["w"]}
    saved = {"state": {}, "param_groups": [group | {"thing": module.Thing()}]}
    save({"optimizer": saved}, checkpoint_id=tmp_path / "state" / "optimizer_0")
    others(tmp_path / "state")
    monkeypatch.delitem(sys.modules, "gone_since")
    with pytest.raises(ValueError, match=r"it holds an object of a class that is not here: .*gone_since"):
        convert(tmp_path / "state", "adopt", tmp_path / "new")


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("folder", ["optimizer", "optimizer_0"])
def test_a_state_without_groups_is_refused_by_name(folder: str, tmp_path: Path) -> None:
    """transformers writes it for a model that is sharded by a DistributedConfig."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    flattened = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    save({"optimizer": flattened}, checkpoint_id=tmp_path / "state" / folder)
    others(tmp_path / "state")
    with pytest.raises(ValueError, match=rf"{folder} is a distributed checkpoint .* save_optimizer_distributed"):
        convert(tmp_path / "state", "adopt", tmp_path / "new")
    assert not (tmp_path / "new").exists()
