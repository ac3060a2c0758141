"""An ADOPT checkpoint and an optimizer that is not ADOPT: refused through every door, before anything has changed."""

import copy
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import save_fsdp_optimizer
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import fully_shard
from transformers import Trainer, TrainerCallback

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.integrations import accelerate, guard, patching

NEEDS_ARGUMENTS = {"LBFGS": {"lr": 1.0}, "SGD": {"lr": 0.1, "momentum": 0.9}}
OTHERS = sorted(
    name
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
)
CONVERT = "`adopt-hf convert CHECKPOINT --to "
REFUSED = rf"is that of ADOPT, and the optimizer is {{}}: .*{CONVERT}adamw`.*weights only: .*from_pretrained"


def trained(cls: Any, **options: Any) -> tuple[nn.Module, Any]:
    """A model and its optimizer after two steps."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = cls(model.parameters(), **options)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("cls", [ADOPT, LayerwiseADOPT])
@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ("SparseAdam", "LBFGS", "Muon", "ADOPT")])
def test_torchs_optimizers(name: str, cls: Any) -> None:
    _, adopt = trained(cls)
    _, other = trained(getattr(torch.optim, name), **NEEDS_ARGUMENTS.get(name, {}))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=REFUSED.format(name)):
        other.load_state_dict(adopt.state_dict())
    with pytest.raises(ValueError, match=REFUSED.format(name)):
        other.load_state_dict(state_dict=adopt.state_dict())
    assert str(other.state_dict()) == str(before)
    other.load_state_dict(before)  # its own it takes


def test_there_are_optimizers_to_test() -> None:
    assert {"Adam", "AdamW", "NAdam", "RAdam", "SGD"} <= set(OTHERS)


def test_adopts_and_what_wraps_them_load() -> None:
    class Wrapper(torch.optim.Optimizer):
        """As lookahead and averaging optimizers are: its groups are the inner one's, and it loads both."""

        def __init__(self, inner: Any):
            self.inner = inner
            super().__init__(inner.param_groups, inner.defaults)

        def load_state_dict(self, state_dict: Any) -> None:
            super().load_state_dict(state_dict)
            self.inner.load_state_dict(state_dict)

    _, adopt = trained(ADOPT)
    for other in (trained(ADOPT)[1], trained(LayerwiseADOPT)[1], Wrapper(trained(ADOPT)[1])):
        other.load_state_dict(adopt.state_dict())
        assert other.param_groups[0]["clip_exp"] == 0.25


def test_an_optimizer_that_is_its_own_inner_one() -> None:
    _, other = trained(torch.optim.AdamW)
    other.optimizer = other
    with pytest.raises(ValueError, match=REFUSED.format("AdamW")):
        other.load_state_dict(trained(ADOPT)[1].state_dict())


def test_what_is_no_state_is_left_to_torch() -> None:
    _, other = trained(torch.optim.AdamW)
    for nonsense in ({}, {"param_groups": []}):
        with pytest.raises((KeyError, ValueError)) as error:
            other.load_state_dict(nonsense)
        assert "ADOPT" not in str(error.value)


def test_a_class_with_a_method_of_its_own(tmp_path: Path) -> None:
    """As bitsandbytes' have: through Accelerate, which saves and loads it."""

    class EightBits(torch.optim.AdamW):
        def load_state_dict(self, state_dict: Any) -> None:
            raise AssertionError("it was loaded")

    model, adopt = trained(ADOPT)
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(model, adopt)
    accelerator.save_state(str(tmp_path))
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(8, 8)
    other = EightBits(model.parameters())
    prepared = accelerator.prepare_optimizer(other, device_placement=False)
    with pytest.raises(ValueError, match=REFUSED.format("EightBits")):
        prepared.load_state_dict(adopt.state_dict())


@pytest.mark.parametrize("other", [torch.optim.AdamW, torch.optim.SGD])
def test_accelerates_load_state(other: Any, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(*trained(ADOPT))
    accelerator.save_state(str(tmp_path))
    accelerator = Accelerator(cpu=True)
    model, optimizer = trained(other, lr=1e-3)
    before = copy.deepcopy(optimizer.state_dict())
    model, optimizer = accelerator.prepare(model, optimizer)
    with pytest.raises(ValueError, match=REFUSED.format(other.__name__)):
        accelerator.load_state(str(tmp_path))
    assert str(optimizer.state_dict()) == str(before)


# -- the Trainer -------------------------------------------------------------------------------------------------------


class Steps(TrainerCallback):
    count = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.count += 1


@pytest.fixture
def checkpoint(arguments: Any, make_trainer: Any) -> Path:
    args = arguments(save_strategy="steps", save_steps=2, max_steps=2)
    make_trainer(args).train()
    return Path(args.output_dir) / "checkpoint-2"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("optim", "cls"), [("adamw_torch", "AdamW"), ("adafactor", "Adafactor"), ("sgd", "SGD")])
def test_the_trainer(optim: str, cls: str, checkpoint: Path, arguments: Any, make_trainer: Any) -> None:
    before, steps = contents(checkpoint.parent), Steps()
    trainer = make_trainer(arguments(optim=optim, max_steps=4, save_strategy="steps", save_steps=2), callbacks=[steps])
    with pytest.raises(ValueError, match=REFUSED.format(cls)):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    assert steps.count == 0
    assert contents(checkpoint.parent) == before


def test_the_way_that_the_error_names(checkpoint: Path, arguments: Any, make_trainer: Any, tiny_gpt2: Any) -> None:
    model = type(tiny_gpt2()).from_pretrained(checkpoint)
    trainer = make_trainer(arguments(optim="adamw_torch", output_dir=str(checkpoint.parent / "next")), model=model)
    trainer.train()
    assert trainer.state.global_step == 3


def test_trls_trainers_load_as_the_trainer_does() -> None:
    trainers = [trl.SFTTrainer, trl.DPOTrainer, trl.RewardTrainer, trl.GRPOTrainer]
    for cls in trainers:
        for name in ("_load_from_checkpoint", "_prepare_for_training", "_load_best_model"):
            of_trainer = getattr(Trainer, name, None)  # _prepare_for_training came after transformers 5.2
            assert getattr(cls, name, None) is of_trainer, (cls, name)
        loads = cls._load_optimizer_and_scheduler
        assert loads is Trainer._load_optimizer_and_scheduler or "super()" in inspect.getsource(loads), cls


# -- FSDP2, in one process ---------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(cls: Any) -> tuple[nn.Module, Any]:
    model = fully_shard(nn.Linear(8, 8), mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    optimizer = cls(model.parameters())
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="torch 2.6 has no FSDP2 on a CPU")
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
@pytest.mark.parametrize("owner", ["accelerate.accelerator", "transformers.trainer"])
@pytest.mark.parametrize(("saved", "loaded"), [(ADOPT, torch.optim.AdamW), (torch.optim.AdamW, ADOPT)])
def test_fsdp2(kind: str, owner: str, saved: Any, loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the function that the Trainer and Accelerate call, from the files that Accelerate writes."""
    monkeypatch.setenv("FSDP_VERSION", "2")
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=kind)
    accelerator = Accelerator(cpu=True)
    load = sys.modules[owner].load_fsdp_optimizer
    model, optimizer = sharded(saved)
    save_fsdp_optimizer(plugin, accelerator, optimizer, model, str(tmp_path))
    other_model, other = sharded(loaded)
    before = str(other.state_dict())
    names = f"is {'' if saved is ADOPT else 'not '}that of ADOPT, and the optimizer is {loaded.__name__}: "
    with pytest.raises(ValueError, match=f"{names}.*{CONVERT}.*weights only"):
        load(plugin, accelerator, other, other_model, str(tmp_path))
    assert str(other.state_dict()) == before
    load(plugin, accelerator, optimizer, model, str(tmp_path))


# -- the patches -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
def test_unregistered_it_is_torchs_method() -> None:
    patching.uninstall(guard.PATCHES)
    patching.uninstall(accelerate.LOADS)
    _, adopt = trained(ADOPT)
    _, other = trained(torch.optim.AdamW)
    other.load_state_dict(adopt.state_dict())  # what the patch is for; remove it when torch refuses


# -- a form of the state that Adam cannot load -------------------------------------------------------------------------


def in_form(state_dict: dict[str, Any], step: Any = lambda t: t, **options: Any) -> dict[str, Any]:
    """A state dict with another form of the steps, and more options in its groups."""
    changed = copy.deepcopy(state_dict)
    for state in changed["state"].values():
        state["step"] = step(state["step"])
    for group in changed["param_groups"]:
        group |= options
    return changed


def broadcast_by_gloo(form: dict[str, Any], plain: dict[str, Any], folder: Path) -> None:
    """As Accelerate does with a whole state of FSDP2."""
    for state in form["state"].values():
        torch.distributed.broadcast(state["step"].clone(), src=0)


def loaded_from_an_earlier_checkpoint(form: dict[str, Any], plain: dict[str, Any], folder: Path) -> None:
    torch.distributed.checkpoint.save({"optimizer": plain}, checkpoint_id=folder)
    torch.distributed.checkpoint.load({"optimizer": form}, checkpoint_id=folder)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(
    ("changes", "adams", "use", "fails"),
    [
        ({}, None, loaded_from_an_earlier_checkpoint, None),
        ({}, None, broadcast_by_gloo, None),
        ({"amsgrad": True}, KeyError, loaded_from_an_earlier_checkpoint, "Missing key .*amsgrad"),
        ({"fused": torch.zeros(2)}, RuntimeError, loaded_from_an_earlier_checkpoint, "Missing key .*fused"),
        (
            {"step": lambda t: str(t.item())},
            ValueError,
            loaded_from_an_earlier_checkpoint,
            "Invalid checkpoint metadata",
        ),
        ({"step": lambda t: t.to(torch.uint32)}, RuntimeError, broadcast_by_gloo, "Invalid scalar type"),
    ],
    ids=["Adam takes it, DCP", "Adam takes it, gloo", "amsgrad", "fused", "text", "uint32"],
)
def test_what_stops_adam_stops_others(changes: Any, adams: Any, use: Any, fails: str | None, tmp_path: Path) -> None:
    """Each form in which torch's Adam cannot go on from the state; where one no longer fails, it can be had."""
    plain = trained(ADOPT)[1].state_dict()
    form = in_form(plain, **changes)
    _, other = trained(torch.optim.AdamW)
    load = torch.optim.Optimizer.load_state_dict.__wrapped__

    def go_on() -> None:
        load(other, form)
        other.step()

    if adams is None:
        go_on()
    else:
        with pytest.raises(adams):
            go_on()
    if fails is None:
        use(form, plain, tmp_path / "saved")
    else:
        with pytest.raises((RuntimeError, CheckpointException), match=fails):
            use(form, plain, tmp_path / "saved")
