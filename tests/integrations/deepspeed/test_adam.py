"""What DeepSpeed has written for Adam: refused by name, with the line to remove, or kept from changing ADOPT."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.lr_schedules import OneCycle

from adopt_hf import ADOPT
from adopt_hf.integrations.deepspeed import adam, ds_config
from adopt_hf.integrations.deepspeed.ds_config import keep_adopt
from adopt_hf.integrations.deepspeed.refused import REPLACEMENTS, Replacement

ROOT = Path(__file__).parents[3]
OFFLOADED = {"device": "cpu"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "zenflow": ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, '"zenflow": {"topk_ratio": 0.1}'),
    "zenflow, all defaults": ({"zero_optimization": {"stage": 2, "zenflow": {}}}, '"zenflow": {}'),
    "superoffload": (
        {"zero_optimization": {"stage": 3, "offload_optimizer": OFFLOADED | {"super_offload": True}}},
        '"super_offload": true in "offload_optimizer" in "zero_optimization"',
    ),
    "ratio": (
        {"zero_optimization": {"stage": 3, "offload_optimizer": OFFLOADED | {"ratio": 0.5}}},
        '"ratio": 0.5 in "offload_optimizer"',
    ),
    "mics": ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, '"mics_shard_size": 2'),
    "mics, gathered by parts": (
        {"zero_optimization": {"stage": 3, "mics_hierarchical_params_gather": True}},
        '"mics_hierarchical_params_gather": true',
    ),
    "elastic": ({"zero_optimization": {"stage": 1, "elastic_checkpoint": True}}, '"elastic_checkpoint": true'),
    "bf16 weights": (
        {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True}, "zero_optimization": {"stage": 2}},
        '"bf16_master_weights_and_grads": true in "bf16"',
    ),
    "bf16 states": (
        {"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}},
        '"bf16_optimizer_states": true in "bf16"',
    ),
    "bf16, by its other name": (
        {"bfloat16": {"enabled": True, "bf16_master_weights_and_grads": True}},
        '"bf16_master_weights_and_grads": true in "bfloat16"',
    ),
    "bf16 states, by their other name": (
        {"bfloat16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}},
        '"bf16_optimizer_states": true in "bfloat16"',
    ),
    "fp16 weights": (
        {"fp16": {"enabled": True, "fp16_master_weights_and_grads": True}},
        '"fp16_master_weights_and_grads": true in "fp16"',
    ),
    "DeepCompile": ({"compile": {"deepcompile": True, "offload_opt_states": True}}, '"offload_opt_states": true'),
    "MS-AMP": ({"msamp": {"enabled": True, "opt_level": "O2"}}, '"msamp": {"enabled": true'),
}
HARMLESS: list[dict[str, Any]] = [
    {},
    {"zero_optimization": {"stage": 2, "zenflow": None, "elastic_checkpoint": False, "mics_shard_size": -1}},
    {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none", "ratio": 0.5}}},
    {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 1.0, "super_offload": False}}},
    {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "compile": {"deepcompile": False}},
    {"msamp": {"enabled": False}, "zero_optimization": True},
]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_steps_with_another_optimizer_is_refused(kind: str) -> None:
    made, line = REFUSED[kind]
    with pytest.raises(ValueError, match=r"the optimizer is ADOPT, and .*remove that line") as error:
        keep_adopt(dict(made))
    assert line in str(error.value)


@pytest.mark.parametrize("row", REPLACEMENTS, ids=lambda row: ".".join(row.path))
def test_every_row_has_a_case(row: Replacement) -> None:
    def has_it(made: Any) -> bool:
        for key in row.path:
            made = made.get(key) if isinstance(made, dict) else None
        return made is not None

    assert any(has_it(made) for made, _ in REFUSED.values()), "add a config with this option to REFUSED"


def test_all_of_it_is_named_at_once() -> None:
    made = {"zero_optimization": {"stage": 2, "zenflow": {}, "elastic_checkpoint": True}}
    with pytest.raises(ValueError, match=r'"zenflow".*"elastic_checkpoint"'):
        keep_adopt(made)


@pytest.mark.parametrize("made", HARMLESS)
def test_the_rest_is_not(made: dict[str, Any]) -> None:
    assert ds_config.replacements(made) == []


INITIALIZE = """
import sys
assert sys.flags.optimize == int(sys.argv[1])
import torch, deepspeed, adopt_hf
from adopt_hf import ADOPT
from tests.integrations.deepspeed.test_adam import REFUSED

class Mine(ADOPT):
    pass

for kind, (made, line) in REFUSED.items():
    for how in ("object", "function", "subclass", "block"):
        model = torch.nn.Linear(2, 2)
        given = {
            "object": {"optimizer": ADOPT(model.parameters())},
            "function": {"optimizer": lambda params: ADOPT(params)},
            "subclass": {"optimizer": Mine(model.parameters())},
            "block": {"model_parameters": model.parameters()},
        }[how]
        config = made | {"train_micro_batch_size_per_gpu": 1}
        if how == "block":
            config = config | {"optimizer": {"type": "ADOPT"}}
        try:
            deepspeed.initialize(model=model, config=config, **given)
        except ValueError as error:
            if line not in str(error):
                raise
        else:
            raise SystemExit(f"{kind} by {how} was taken")
print("all refused")
"""


@pytest.mark.slow
@pytest.mark.parametrize("optimized", [0, 1])
def test_initialize_refuses_them_also_without_assertions(optimized: int, start: Any) -> None:
    """However ADOPT is handed over; DeepSpeed's own assertions are not there under `python -O`."""
    flags = ["-O"] * optimized
    done = start(*flags, "-c", INITIALIZE, str(optimized), cwd=ROOT, env={"DS_ACCELERATOR": "cpu"}).result()
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("all refused\n")


# -- OneCycle ----------------------------------------------------------------------------------------------------------

CYCLE: dict[str, Any] = {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3, "cycle_first_step_size": 3, "decay_step_size": 2}


@pytest.fixture
def optimizer() -> ADOPT:
    adam._warn_of_betas.cache_clear()
    return ADOPT([torch.nn.Parameter(torch.zeros(2))], betas=(0.9, 0.9999))


def betas_in(schedule: OneCycle, optimizer: torch.optim.Optimizer) -> set[tuple[float, float]]:
    seen = set()
    for _ in range(20):
        seen.add(tuple(optimizer.param_groups[0]["betas"]))
        schedule.step()
    return seen


def test_one_cycle_leaves_the_betas_and_says_so_once(optimizer: ADOPT, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        schedules = [OneCycle(optimizer, **CYCLE, decay_mom_rate=0.1) for _ in range(2)]
    assert betas_in(schedules[0], optimizer) == {(0.9, 0.9999)}
    assert [record.message.count("cycle_momentum=False") for record in caplog.records] == [1]
    assert optimizer.param_groups[0]["lr"] != 1e-3  # it is cycled


def test_one_cycle_without_momentum_says_nothing(optimizer: ADOPT, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        schedule = OneCycle(optimizer, **CYCLE, cycle_momentum=False)
    assert betas_in(schedule, optimizer) == {(0.9, 0.9999)}
    assert not [record for record in caplog.records if record.name == "adopt_hf"]


def test_one_cycle_that_is_to_cycle_momentum_is_refused(optimizer: ADOPT) -> None:
    class Wrapper:
        def __init__(self, optimizer: ADOPT):
            self.optimizer = optimizer

    for given in (optimizer, Wrapper(optimizer)):
        with pytest.raises(ValueError, match=r'ADOPT.*beta2 to 0.99.*"cycle_momentum": false'):
            OneCycle(given, **CYCLE, cycle_momentum=True)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.9999)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_one_cycle_of_adam_is_as_ever() -> None:
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    assert {beta2 for _, beta2 in betas_in(OneCycle(adam, **CYCLE), adam)} == {0.99}
