"""The checks of a recipe before it trains: settings, DeepSpeed's numbers, the cache and the output folder."""

import os
import types
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from examples.shared import launch
from examples.shared.errors import InputError


def training_arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        **{"output_dir": str(folder), "use_cpu": True, "report_to": "none", "optim": "adopt"} | options
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size must be at least 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1 for num_train_epochs, got 0"),
        ({"lr_scheduler_kwargs": "min_lr"}, "lr_scheduler_kwargs must be a JSON object, got 'min_lr'"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"min": 1}}, "min"),
        ({"optim_args": "beta3=1"}, "beta3"),
        ({"optim_args": "backend=foreach, capturable=true"}, "backend='foreach'"),
        ({"optim": "adopt_layerwise", "gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2: set it to 1"),
        ({"optim_args": "loraplus_lr_ratio=16"}, "loraplus_lr_ratio in optim_args needs LoRA"),
        ({"optim": "adopt_8bit", "optim_args": "loraplus_lr_ratio=16"}, "loraplus_lr_ratio in optim_args needs LoRA"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_used(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        launch.check_training(training_arguments(tmp_path, **options))


@pytest.mark.parametrize(
    ("options", "lora"),
    [
        ({}, False),
        ({"optim": "adopt_8bit"}, False),
        ({"optim": "adopt_layerwise"}, False),
        ({"optim": "adamw_torch", "optim_args": "fused=true"}, False),
        ({"optim_args": "loraplus_lr_ratio=16"}, True),
    ],
)
def test_settings_that_can(options: dict[str, Any], lora: bool, tmp_path: Path) -> None:
    args = training_arguments(tmp_path, **options)
    launch.check_training(args, lora)
    assert args.dataloader_pin_memory is False


def test_processes_that_would_train_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = training_arguments(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        InputError, match="2 processes were launched, but each would train alone; on CPUs pass --use_cpu"
    ):
        launch.check_training(args)


@pytest.mark.parametrize(
    ("launcher", "error"),
    [
        ({}, None),
        ({"gradient_accumulation_steps": "auto", "gradient_clipping": "auto"}, None),
        ({"gradient_accumulation_steps": 2, "gradient_clipping": 0.5, "train_micro_batch_size_per_gpu": 8}, None),
        (
            {"gradient_accumulation_steps": 4},
            "gradient_accumulation_steps is 2, .* has gradient_accumulation_steps = 4",
        ),
        ({"gradient_clipping": 1.0}, "max_grad_norm is 0.5, .* has gradient_clipping = 1.0"),
        ({"gradient_clipping": 0.0}, "max_grad_norm is 0.5, .* has gradient_clipping = 0.0"),
        ({"train_micro_batch_size_per_gpu": 1}, "per_device_train_batch_size is 8"),
    ],
)
def test_deepspeed_is_told_the_recipes_numbers(launcher: dict[str, Any], error: str | None, tmp_path: Path) -> None:
    """DeepSpeed does not always fill "auto" with the recipe's number, and a contradiction must not pass."""
    numbers = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
    args = training_arguments(tmp_path, **numbers)
    plugin = types.SimpleNamespace(gradient_clipping=launcher.get("gradient_clipping", "auto"))
    plugin.deepspeed_config = {key: value for key, value in launcher.items() if value}  # as accelerate leaves out 0
    args.deepspeed_plugin = plugin
    if error is None:
        launch.settle_deepspeed(args)
        assert plugin.deepspeed_config == {
            "train_micro_batch_size_per_gpu": 8,
            "gradient_accumulation_steps": 2,
            "gradient_clipping": 0.5,
        }
    else:
        with pytest.raises(InputError, match=error):
            launch.settle_deepspeed(args)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes of files")
def test_what_another_user_could_have_changed_is_not_read(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "model"
    assert launch.open_cache(kept.parent, kept) == kept.parent
    kept.mkdir()
    kept.chmod(0o777)
    with pytest.raises(InputError, match=f"cannot be trusted: .*{kept}.* choose another --cache_dir"):
        launch.open_cache(kept.parent, kept)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used: "):
        launch.open_cache(tmp_path / "file" / "cache")


def test_a_folder_is_taken_once(tmp_path: Path) -> None:
    file = tmp_path / "out" / "run.json"
    launch.take_folder(file, "first", new=True)
    with pytest.raises(InputError, match=f"output_dir {file.parent} has just been taken by another run"):
        launch.take_folder(file, "second", new=True)
    assert file.read_text() == "first"
    launch.take_folder(file, "first, going on", new=False)
    assert file.read_text() == "first, going on"
    with pytest.raises(InputError, match="cannot be written: "):
        launch.take_folder(file / "inside" / "run.json", "", new=True)


def test_fsdp_that_accelerate_leaves_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="FSDP was asked for, but Accelerate turns it off on CPUs"):
        launch.check_launch(types.SimpleNamespace(distributed_type="MULTI_CPU"), None)
    launch.check_launch(types.SimpleNamespace(distributed_type="FSDP"), None)
