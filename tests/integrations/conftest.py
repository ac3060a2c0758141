"""A tiny GPT-2, data for it, and its Trainer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import adopt_hf


@pytest.fixture
def registered() -> Iterator[None]:
    """For tests that call `unregister()`: registered again afterwards."""
    yield
    adopt_hf.register()


def make_model(**changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "vocab_size": 64,
        "n_positions": 16,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPT2LMHeadModel(GPT2Config(**(config | changes)))


def optimizer_of(trainer: Trainer) -> Any:
    """Return the optimizer of a trainer, without Accelerate's wrapper."""
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


@pytest.fixture
def tiny_gpt2() -> Callable[..., GPT2LMHeadModel]:
    return make_model


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """`arguments(**fields)`: TrainingArguments with optim="adopt" for a quiet run of three steps on the CPU."""

    def make(**fields: Any) -> TrainingArguments:
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "optim": "adopt",
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return TrainingArguments(**(defaults | fields))

    return make


@pytest.fixture
def make_trainer(arguments: Callable[..., TrainingArguments]) -> Callable[..., Trainer]:
    """`make_trainer(args, **options)`: a Trainer of a new, always equal tiny GPT-2 on 16 sequences."""

    def make(args: TrainingArguments | None = None, **options: Any) -> Trainer:
        tokens = torch.randint(64, (16, 8), generator=torch.Generator().manual_seed(1))
        data = [{"input_ids": row, "labels": row} for row in tokens]
        return Trainer(**({"model": make_model(), "args": args or arguments(), "train_dataset": data} | options))

    return make
