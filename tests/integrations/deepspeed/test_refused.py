"""Settings of a DeepSpeed config that step with another optimizer are refused by name, with the line to remove."""

from typing import Any

import pytest

from adopt_hf.integrations.deepspeed import ds_config
from adopt_hf.integrations.deepspeed.ds_config import keep_adopt
from adopt_hf.integrations.deepspeed.refused import REPLACEMENTS, Replacement
from tests.support.processes import ROOT, python

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
from tests.integrations.deepspeed.test_refused import REFUSED

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
def test_initialize_refuses_them_also_without_assertions(optimized: int) -> None:
    """However ADOPT is handed over; DeepSpeed's own assertions are not there under `python -O`."""
    flags = ["-O"] * optimized
    assert python(*flags, "-c", INITIALIZE, optimized, cwd=ROOT).endswith("all refused\n")
