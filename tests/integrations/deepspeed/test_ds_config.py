"""The DeepSpeed config: what `config()` makes, what an ADOPT block in it means, and what is refused.

Real training under DeepSpeed is in tests/processes.
"""

import itertools
import json
from collections import UserList
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from transformers import TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

from adopt_hf import ADOPT, ADOPTW
from adopt_hf.hyperparameters import WARMUP_EXPONENT
from adopt_hf.integrations.deepspeed import initialize as door
from adopt_hf.integrations.deepspeed.checkpoints import OTHER_WORLD_SIZE
from adopt_hf.integrations.deepspeed.ds_config import (
    block_kwargs,
    config,
    forget_auto,
    is_adopt_block,
    keep_adopt,
)
from tests.support.forks import BEFORE_TRANSFORMERS
from tests.support.processes import python

NUMBERS: dict[str, Any] = {
    "precision": "bf16",
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 3,
    "gradient_clipping": 1.0,
}
COMBINATIONS = [
    (stage, offload, nvme)
    for stage, offload, nvme in itertools.product((0, 1, 2, 3), (None, "optimizer", "parameters"), (None, "/nvme"))
    if (offload is None or stage > 0)
    and (offload != "parameters" or stage == 3)
    and (nvme is None or (stage == 3 and offload))
]


@pytest.mark.parametrize(("stage", "offload", "nvme_path"), COMBINATIONS)
def test_deepspeed_reads_what_config_makes(stage: int, offload: str | None, nvme_path: str | None) -> None:
    made = config(stage, offload=offload, nvme_path=nvme_path, optimizer={"lr": 1e-3, "clip_exp": None}, **NUMBERS)
    json.dumps(made)
    read = DeepSpeedConfig(made)
    zero = read.zero_config
    device = "nvme" if nvme_path else "cpu"
    assert zero.stage == stage
    assert (zero.offload_optimizer and zero.offload_optimizer.device) == (device if offload else None)
    assert (zero.offload_param and zero.offload_param.device) == (device if offload == "parameters" else None)
    assert read.zero_force_ds_cpu_optimizer is not bool(offload)
    if hasattr(read, "bfloat16_enabled"):  # DeepSpeed 0.17
        assert (read.bfloat16_enabled, read.fp16_enabled) == (True, False)
    else:
        assert (read.bfloat16_config.enabled, read.float16_config.enabled) == (True, False)
    assert (read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (2, 3)
    assert read.gradient_clipping == 1.0
    assert (read.optimizer_name, read.optimizer_params) == ("ADOPT", {"lr": 1e-3, "clip_exp": None})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stage": 4}, r"stage must be 0, 1, 2 or 3, got 4"),
        ({"stage": True}, r"stage must be .* got True"),
        ({"stage": "2"}, r"stage must be .* got '2'"),
        ({"stage": 1, "offload": "cpu"}, r"offload must be one of None, 'optimizer', 'parameters', got 'cpu'"),
        ({"stage": 0, "offload": "optimizer"}, r"offload='optimizer' needs stage 1, 2 or 3, got stage=0"),
        ({"stage": 2, "offload": "parameters"}, r"offload='parameters' needs stage 3, got stage=2"),
        ({"stage": 3, "nvme_path": "/nvme"}, r"nvme_path needs stage 3 and an offload, got stage=3, offload=None"),
        ({"stage": 2, "offload": "optimizer", "nvme_path": "/x"}, r"nvme_path needs stage 3 .* got stage=2"),
        ({"stage": 2, "precision": "fp8"}, r"precision must be one of 'auto', 'fp32', 'bf16', 'fp16', got 'fp8'"),
        ({"stage": 2, "optimizer": {"beta2": 0.9}}, r"optimizer.params has the unknown key 'beta2'; .* betas"),
        ({"stage": 2, "optimizer": {"eps": -1.0}}, r"optimizer.params: eps must be a finite number >= 0, got -1.0"),
    ],
)
def test_bad_arguments_of_config(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**kwargs)


@pytest.mark.parametrize("name", ["ADOPT", "adopt", "Adopt", "ADOPTW", "adoptw"])
def test_a_block_is_adopts_in_any_case(name: str) -> None:
    assert is_adopt_block({"optimizer": {"type": name}})


@pytest.mark.parametrize("made", [{}, {"optimizer": None}, {"optimizer": {"type": "AdamW"}}, {"optimizer": {}}])
def test_other_blocks_are_not(made: dict[str, Any]) -> None:
    assert not is_adopt_block(made)


@pytest.mark.parametrize("betas", [[0.5, 0.75], (0.5, 0.75), UserList([0.5, 0.75]), np.array([0.5, 0.75])], ids=repr)
def test_betas_are_any_pair_and_a_list_in_json(betas: Any) -> None:
    """UserList is, like OmegaConf's ListConfig, a sequence that JSON does not know."""
    made = config(2, optimizer={"lr": 1e-3, "betas": betas})
    assert json.loads(json.dumps(made))["optimizer"]["params"]["betas"] == [0.5, 0.75]
    block = {"type": "ADOPT", "params": {"lr": 0.1, "betas": betas}}
    assert list(block_kwargs({"optimizer": block})["betas"]) == [0.5, 0.75]


def test_auto_means_not_set() -> None:
    made = {"optimizer": {"type": "ADOPT", "params": {"lr": 0.1, "betas": "auto", "eps": "auto", "clip_exp": "auto"}}}
    assert block_kwargs(made) == {"lr": 0.1}
    forget_auto(made)
    assert made["optimizer"]["params"] == {"lr": 0.1}
    filled = {"optimizer": {"type": "ADOPT", "params": {"lr": "auto", "weight_decay": "auto", "eps": "auto"}}}
    forget_auto(filled)
    assert filled["optimizer"]["params"] == {"lr": "auto", "weight_decay": "auto"}
    bare: dict[str, Any] = {"optimizer": {"type": "ADOPT"}}
    forget_auto(bare)
    assert block_kwargs(bare) == {}


def initialize(
    args: Any = None, model: Any = None, optimizer: Any = None, model_parameters: Any = None, config: Any = None
) -> Any:
    """Return what DeepSpeed's own function is given."""
    return optimizer


def make_adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params)


@pytest.mark.parametrize("cls", [ADOPT, ADOPTW])
@pytest.mark.parametrize("name", ["AdamW", "ADOPT"])
@pytest.mark.parametrize("is_function", [False, True], ids=["an optimizer", "a function that makes it"])
def test_a_block_beside_an_adopt_has_no_effect_and_a_warning_says_so(
    name: str, cls: type[ADOPT], is_function: bool, caplog: pytest.LogCaptureFixture
) -> None:
    door._warn_of_block.cache_clear()
    model = torch.nn.Linear(2, 2)
    for _ in range(2):
        optimizer: Any = (lambda params: cls(params, lr=0.5)) if is_function else cls(model.parameters(), lr=0.5)
        made = {"optimizer": {"type": name, "params": {"lr": 0.1}}}
        used = door.initialize(initialize, model=model, optimizer=optimizer, config=made)
        assert (type(used), used.param_groups[0]["lr"]) == (cls, 0.5)
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once a process"
    assert f'was given ADOPT, and a config with an "optimizer" block of type {name}' in caplog.text


@pytest.mark.parametrize("is_function", [False, True], ids=["an optimizer", "a function that makes it"])
def test_another_optimizer_beside_an_adopt_block_is_refused(is_function: bool) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = make_adamw if is_function else make_adamw(model.parameters())
    with pytest.raises(ValueError, match=r"block of the DeepSpeed config asks for adoptw, and .* was given AdamW"):
        door.initialize(initialize, model=model, optimizer=optimizer, config={"optimizer": {"type": "adoptw"}})
    other = {"optimizer": {"type": "Lion"}}
    used = door.initialize(initialize, model=model, optimizer=optimizer, config=other)
    assert type(used) is torch.optim.AdamW, "what is not of ADOPT is DeepSpeed's"


@pytest.mark.parametrize("device", ["cpu", "nvme"])
def test_offloaded_adopt_is_kept(device: str) -> None:
    made: dict[str, Any] = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": device}}}
    keep_adopt(made)
    assert made["zero_force_ds_cpu_optimizer"] is False
    made["zero_force_ds_cpu_optimizer"] = True
    with pytest.raises(ValueError, match="DeepSpeedCPUAdam instead: remove that line"):
        keep_adopt(made)


@pytest.mark.parametrize(
    "zero", [{}, {"zero_optimization": {"stage": 2}}, {"zero_optimization": {"offload_optimizer": {"device": "none"}}}]
)
def test_where_nothing_is_offloaded_nothing_is_said(zero: dict[str, Any]) -> None:
    made = dict(zero)
    keep_adopt(made)
    assert made == zero


# -- under the Trainer -------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., HfTrainerDeepSpeedConfig]:
    """`process(block, **fields)`: a DeepSpeed config with the block, as TrainingArguments leaves it."""

    def run(block: dict[str, Any] | None, **fields: Any) -> HfTrainerDeepSpeedConfig:
        made = config(2) | ({"optimizer": block} if block else {})
        processed = HfTrainerDeepSpeedConfig(made)
        processed.trainer_config_process(TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **fields))
        return processed

    return run


AUTO = {"type": "ADOPT", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")}


def params(processed: HfTrainerDeepSpeedConfig) -> dict[str, Any]:
    found: dict[str, Any] = processed.config["optimizer"]["params"]
    return found


def test_auto_is_filled_by_the_trainers_rule(process: Callable[..., HfTrainerDeepSpeedConfig]) -> None:
    found = params(process(AUTO, learning_rate=3e-4, weight_decay=0.1))
    assert (found["lr"], found["weight_decay"]) == (3e-4, 0.1)
    assert (found["betas"], found["eps"], found["decouple"]) == ((0.9, 0.9999), 1e-6, True)
    assert found["beta2_warmup"] == WARMUP_EXPONENT


@pytest.mark.parametrize("kind", ["ADOPT", "adoptw"])
def test_a_block_under_the_trainer_is_adoptw(kind: str, process: Callable[..., HfTrainerDeepSpeedConfig]) -> None:
    assert process({"type": kind, "params": {}}).config["optimizer"]["type"] == "ADOPTW"


def test_a_number_that_is_set_reaches_the_block(process: Callable[..., HfTrainerDeepSpeedConfig]) -> None:
    found = params(process(AUTO, adam_beta2=0.95, adam_epsilon=1e-7, optim="adopt", optim_args="clip_exp=0.5"))
    assert (found["betas"], found["eps"], found["clip_exp"]) == ((0.9, 0.95), 1e-7, 0.5)


@pytest.mark.parametrize(
    ("written", "fields", "mismatch"),
    [
        ({"betas": [0.9, 0.99]}, {}, None),  # Adam's default in TrainingArguments is no contradiction
        ({"betas": [0.9, 0.95]}, {"adam_beta2": 0.95}, None),
        ({"betas": [0.9, 0.99]}, {"adam_beta2": 0.95}, "optimizer.params.betas=0.99 vs hf beta2=0.95"),
        ({"eps": 1e-8}, {}, None),
        ({"eps": 1e-8}, {"adam_epsilon": 1e-7}, "optimizer.params.eps=1e-08 vs hf eps=1e-07"),
        ({"lr": 1e-3}, {"learning_rate": 1e-3}, None),
        ({"lr": 1e-3}, {"learning_rate": 1e-4}, "optimizer.params.lr=0.001 vs hf lr=0.0001"),
        ({"clip_exp": None}, {"optim": "adopt", "optim_args": "clip_exp=0.5"}, "clip_exp=None vs hf clip_exp=0.5"),
        ({"beta2_warmup": True}, {"optim": "adopt"}, None),
    ],
)
def test_what_is_written_stays_and_contradictions_are_named(
    written: dict[str, Any],
    fields: dict[str, Any],
    mismatch: str | None,
    process: Callable[..., HfTrainerDeepSpeedConfig],
) -> None:
    processed = process({"type": "ADOPT", "params": written}, **fields)
    for name, value in written.items():
        assert (
            params(processed)[name] == (tuple(value) if name == "betas" else value) or params(processed)[name] == value
        )
    assert len(processed.mismatches) == (mismatch is not None)
    assert mismatch is None or mismatch in processed.mismatches[0]


def test_twice_is_once(process: Callable[..., HfTrainerDeepSpeedConfig], tmp_path: Path) -> None:
    """The Trainer does it again when it looks for a batch size."""
    processed = process(AUTO, adam_beta2=0.95)
    before = dict(params(processed))
    processed.trainer_config_process(
        TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", adam_beta2=0.95), True
    )
    assert params(processed) == before
    assert processed.mismatches == []


@pytest.mark.parametrize("kind", ["AdamW", "Lion", "OneBitAdam"])
def test_another_block_beside_optim_adopt_is_an_error(
    kind: str, process: Callable[..., HfTrainerDeepSpeedConfig]
) -> None:
    with pytest.raises(ValueError, match=rf'optim="adopt" asks for ADOPT.*{kind}.*remove that block'):
        process({"type": kind, "params": {"lr": "auto"}}, optim="adopt")


def test_other_blocks_are_the_trainers_business(process: Callable[..., HfTrainerDeepSpeedConfig]) -> None:
    block = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto"}}
    assert params(process(block, optim="adamw_torch")) == {"lr": 5e-5, "betas": [0.9, 0.999], "eps": 1e-8}
    assert "optimizer" not in process(None, optim="adopt").config


# -- registration ------------------------------------------------------------------------------------------------------

LATER = """
import importlib.util, sys
import adopt_hf
from adopt_hf import ADOPT, ADOPTW
assert "deepspeed" not in sys.modules
assert importlib.util.find_spec("deepspeed") is not None          # a look is no import
adopt_hf.register()                                               # twice is once
import deepspeed
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
import accelerate

def state():
    return deepspeed.initialize, deepspeed.DeepSpeedEngine.load_checkpoint, accelerate.Accelerator.prepare

ours = state()
assert all(hasattr(function, "_adopt_hf_wraps") for function in ours)
assert not hasattr(ours[0]._adopt_hf_wraps, "_adopt_hf_wraps")
assert ZERO_SUPPORTED_OPTIMIZERS.count(ADOPT) == ZERO_SUPPORTED_OPTIMIZERS.count(ADOPTW) == 1
adopt_hf.unregister()
assert state() == tuple(function._adopt_hf_wraps for function in ours)
assert not {ADOPT, ADOPTW} & set(ZERO_SUPPORTED_OPTIMIZERS)
adopt_hf.unregister()
adopt_hf.register()
assert all(hasattr(function, "_adopt_hf_wraps") for function in state())
assert ZERO_SUPPORTED_OPTIMIZERS.count(ADOPT) == ZERO_SUPPORTED_OPTIMIZERS.count(ADOPTW) == 1
print("fine")
"""

UNFIT = """
import sys
import torch
import deepspeed
deepspeed.initialize = lambda model, optimizer=None, model_parameters=None, config=None, config_params=None: "passed"
{change}
import adopt_hf                                                   # after DeepSpeed, and nothing is raised yet
model = torch.nn.Linear(2, 2)
def call(**kwargs):
    return deepspeed.initialize(model=model, **kwargs)
for kwargs in (
    dict(optimizer=adopt_hf.ADOPTW(model.parameters())),
    dict(optimizer=adopt_hf.ADOPT, config={{}}),
    dict(config={{"optimizer": {{"type": "ADOPT"}}}}),
):
    try:
        call(**kwargs)
    except ImportError as error:
        assert sys.argv[1] in str(error), error
    else:
        raise AssertionError(kwargs)
print("theirs:", call(optimizer=torch.optim.AdamW(model.parameters()), config={{}}))
"""

CHANGES = {
    "initialize": (
        'deepspeed.initialize = lambda model, optimizer=None, config=None: "passed"',
        "changed deepspeed.initialize",
    ),
    "supported": (
        "import deepspeed.runtime.zero.utils as utils; utils.ZERO_SUPPORTED_OPTIMIZERS = ()",
        "changed ZERO_SUPPORTED_OPTIMIZERS",
    ),
    "load_checkpoint": (
        "del deepspeed.DeepSpeedEngine.load_checkpoint",
        "changed deepspeed.DeepSpeedEngine.load_checkpoint",
    ),
    "older": (
        "deepspeed.__version__ = '0.16.9'",
        "needs deepspeed 0.17 or later, and 0.16.9 is installed",
    ),
}


def test_deepspeed_imported_later_and_unregistered(tmp_path: Path) -> None:
    assert python("-c", LATER, cwd=tmp_path, modules=BEFORE_TRANSFORMERS).endswith("fine\n")


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_an_unfit_deepspeed_refuses_adopt_alone(change: str, tmp_path: Path) -> None:
    code, words = CHANGES[change]
    said = python("-c", UNFIT.format(change=code), words, cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert "theirs: passed" in said


def test_the_sentence_on_world_sizes_names_a_command_that_exists() -> None:
    import importlib.util

    name = OTHER_WORLD_SIZE.split("python -m ")[1].split()[0]
    assert importlib.util.find_spec(name) is not None
