"""optim="adopt_8bit" and "adopt_layerwise" in a real Trainer: what they are, exact resume, and what they refuse."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed

from adopt_hf import ADOPTW, LayerwiseADOPTW, trainer_kwargs
from adopt_hf.integrations.transformers import arguments as arguments_module
from adopt_hf.state.conversion import bits_of
from tests.integrations.conftest import optimizer_of


def arguments(folder: Path, **fields: Any) -> TrainingArguments:
    defaults = {"learning_rate": 1e-2, "weight_decay": 0.1, "max_steps": 8, "save_steps": 4, "use_cpu": True}
    quiet = {"report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 4, "logging_steps": 1}
    return TrainingArguments(output_dir=str(folder), **{**defaults, **quiet, **fields})


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    set_seed(0)
    config = GPT2Config(
        vocab_size=80, n_positions=16, n_embd=64, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    made = GPT2LMHeadModel(config).to(dtype)
    made.loss_type = "ForCausalLM"
    return made


def data() -> list[dict[str, list[int]]]:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(80, (64, 12), generator=generator).tolist()
    return [{"input_ids": row, "labels": row} for row in rows]


def trained(args: TrainingArguments, resume: str | None = None, dtype: torch.dtype = torch.float32) -> Trainer:
    trainer = Trainer(model=model(dtype), args=args, train_dataset=data())
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"optim": "adopt_8bit"}, torch.float32),
        ({"optim": "adopt_8bit", "optim_args": "bf16_stochastic_round=true, block_size=64"}, torch.bfloat16),
        ({"optim": "adopt", "optim_args": "state_bits=16"}, torch.float32),
        ({"optim": "adopt", "optim_args": "bf16_stochastic_round=true"}, torch.bfloat16),
        ({"optim": "adopt_layerwise", "max_grad_norm": 0}, torch.float32),
        ({"optim": "adopt_layerwise", "max_grad_norm": 0, "optim_args": "state_bits=8"}, torch.float32),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path) -> None:
    whole = trained(arguments(tmp_path / "a", **fields), dtype=dtype)
    resumed = trained(arguments(tmp_path / "b", **fields), str(tmp_path / "a" / "checkpoint-4"), dtype)
    assert resumed.state.global_step == 8
    for (name, p), q in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name
        a, b = optimizer_of(whole).state[p], optimizer_of(resumed).state[q]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name


def test_8_bits_are_that(tmp_path: Path) -> None:
    trainer = trained(arguments(tmp_path, optim="adopt_8bit", save_strategy="no", optim_args="seed=7"))
    optimizer = optimizer_of(trainer)
    assert type(optimizer) is ADOPTW
    assert [group["seed"] for group in optimizer.param_groups] == [7, 7]
    for name, p in trainer.model.named_parameters():
        keeps = p.numel() < 4096 or "wte" in name or "wpe" in name
        assert bits_of(optimizer.state[p]) == (32 if keeps else 8), name
    float32 = trained(arguments(tmp_path, optim="adopt", save_strategy="no"))
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (trainer, float32)]
    assert losses[0] != losses[1]
    assert losses[0][-1] == pytest.approx(losses[1][-1], abs=0.05)


def test_layerwise_is_adopt(tmp_path: Path) -> None:
    layerwise = trained(arguments(tmp_path, optim="adopt_layerwise", max_grad_norm=0, save_strategy="no"))
    assert type(optimizer_of(layerwise)) is LayerwiseADOPTW
    whole = trained(arguments(tmp_path, optim="adopt", max_grad_norm=0, save_strategy="no"))
    assert type(optimizer_of(whole)) is ADOPTW
    assert all(map(torch.equal, layerwise.model.parameters(), whole.model.parameters()))


def test_layerwise_by_default_says_nothing_and_does_not_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No user has asked for the default of TrainingArguments. The weights are those without it, to the bit."""
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        default = trained(arguments(tmp_path, optim="adopt_layerwise", save_strategy="no"))
    assert not [record for record in caplog.records if record.name == "adopt_hf"]
    off = trained(arguments(tmp_path, optim="adopt_layerwise", max_grad_norm=0, save_strategy="no"))
    assert all(map(torch.equal, default.model.parameters(), off.model.parameters()))


def test_layerwise_says_once_that_it_does_not_clip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A number that was written is told from the default by being another object."""
    arguments_module._warn_of_clipping.cache_clear()
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        for _ in range(2):
            trainer_kwargs(arguments(tmp_path, optim="adopt_layerwise", max_grad_norm=float("1.0")))
    (record,) = caplog.records
    assert record.getMessage().startswith("max_grad_norm=1.0 was given, and optim='adopt_layerwise' cannot clip")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2: set it to 1"),
        ({"max_grad_norm": 0.5}, "max_grad_norm=0.5: set it to 0"),
        ({"optim_args": "capturable=true, state_bits=8"}, "state_bits=8 cannot be combined with capturable=True"),
    ],
)
def test_layerwise_refuses(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    trainer = Trainer(model=model(), args=arguments(tmp_path, optim="adopt_layerwise", **fields), train_dataset=data())
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_layerwise_refuses_a_second_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = arguments(tmp_path, optim="adopt_layerwise")
    trainer_kwargs(args)
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="2 processes: start one"):
        trainer_kwargs(args)


@pytest.mark.parametrize("name", ["adopt_8bit", "adopt_layerwise"])
def test_the_names_parse_and_pickle(name: str, tmp_path: Path) -> None:
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--optim", name, "--use_cpu"]
    )
    assert args.optim == name
    torch.save(args, tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).optim == name
