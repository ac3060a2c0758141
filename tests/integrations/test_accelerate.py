"""`Accelerator.prepare` with ADOPT, in one process; launches with several are in tests/processes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from adopt_hf import ADOPT
from tests.support.forks import BEFORE_TRANSFORMERS
from tests.support.processes import free_port, python


def test_float32_moments_of_bfloat16_parameters_survive_prepare() -> None:
    """`prepare` loads an optimizer's own state dict back into it, and torch alone would cast the moments."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(torch.bfloat16)
    optimizer = ADOPT(model.parameters())
    for _ in range(3):
        model(torch.randn(8, 4, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
    before = [state["exp_avg_sq"].clone() for state in optimizer.state.values()]
    _, prepared = Accelerator(cpu=True).prepare(model, optimizer)
    assert type(prepared.optimizer) is ADOPT
    for state, expected in zip(prepared.optimizer.state.values(), before, strict=True):
        assert state["exp_avg_sq"].dtype == torch.float32
        assert torch.equal(state["exp_avg_sq"], expected)
        assert state["step"].item() == 3
    assert any(not torch.equal(v, v.bfloat16().float()) for v in before)  # bfloat16 could not have held them


# What Accelerate gives to `deepspeed.initialize` under offload; the real method of Accelerate, up to there.
OFFLOADED = """
import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
import accelerate.accelerator
import deepspeed
import adopt_hf

class Given(Exception):
    pass

def initialize(**kwargs):
    raise Given(type(kwargs["optimizer"]).__name__)

def replaced(optimizer):
    raise Given("DeepSpeedCPUAdam for " + type(optimizer).__name__)

deepspeed.initialize = initialize
accelerate.accelerator.map_pytorch_optim_to_deepspeed = replaced
config = adopt_hf.integrations.deepspeed.config(
    stage=2, offload="optimizer", train_micro_batch_size_per_gpu=1, gradient_accumulation_steps=1, gradient_clipping=0.0
)
del config["zero_force_ds_cpu_optimizer"]                   # as in a config that was not made for ADOPT
PartialState(cpu=True)
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
model = torch.nn.Linear(2, 2)
for cls in (torch.optim.AdamW, adopt_hf.LayerwiseADOPT, adopt_hf.ADOPT, adopt_hf.ADOPTW):
    accelerator.deepspeed_plugin.deepspeed_config.pop("zero_force_ds_cpu_optimizer", None)
    try:
        accelerator.prepare(model, cls(model.parameters()))
    except Given as given:
        print(given)
"""


def test_an_offloaded_adopt_is_not_replaced(tmp_path: Path) -> None:
    """The guard that keeps Accelerate from training Adam, which it does with every other optimizer, without a word."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    variables = alone | {"MASTER_PORT": str(free_port()), "ACCELERATE_USE_DEEPSPEED": "true"}
    said = python("-c", OFFLOADED, cwd=tmp_path, env=variables, modules=BEFORE_TRANSFORMERS).splitlines()
    assert said == ["DeepSpeedCPUAdam for AdamW", "LayerwiseADOPT", "ADOPT", "ADOPTW"]


@pytest.mark.parametrize("count", [1, 2])
def test_whatever_replaces_an_adopt_is_found(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """MS-AMP and Megatron bring optimizers of their own; so may a later version of Accelerate."""
    model = nn.Linear(4, 3)
    accelerator = Accelerator(cpu=True)

    def replaced(optimizer: Any, device_placement: Any = None) -> Any:
        return AcceleratedOptimizer(torch.optim.AdamW(optimizer.param_groups[0]["params"]))

    monkeypatch.setattr(accelerator, "prepare_optimizer", replaced)
    given = (model, ADOPT(model.parameters()))[-count:]
    with pytest.raises(RuntimeError, match=r"was given ADOPT and returned AdamW,"):
        accelerator.prepare(*given)
    accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
