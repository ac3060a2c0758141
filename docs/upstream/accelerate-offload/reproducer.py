"""One process on a CPU: Accelerate replaces an optimizer under ZeRO-Offload, without a word.

`Still` never changes a weight. With accelerate 1.15.0 the weights change, because DeepSpeedCPUAdam has taken its place.
A stand-in for DeepSpeedCPUAdam saves its build of two minutes. The real one does the same.
"""

import os

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
os.environ.setdefault("MASTER_PORT", "29533")

import deepspeed
import deepspeed.ops.adam
import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState


class DeepSpeedCPUAdam(torch.optim.Adam):
    def __init__(self, params, adamw_mode, **options):
        super().__init__(params, **options)


class Still(torch.optim.SGD):
    def step(self, closure=None):
        pass


deepspeed.ops.adam.DeepSpeedCPUAdam = DeepSpeedCPUAdam
deepspeed.runtime.zero.utils.ZERO_SUPPORTED_OPTIMIZERS.append(DeepSpeedCPUAdam)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # another build of two minutes

PartialState(cpu=True)
config = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}},
}
accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
model = torch.nn.Linear(4, 1)
before = model.weight.detach().clone()
engine, optimizer = accelerator.prepare(model, Still(model.parameters(), lr=0.1))
accelerator.backward(engine(torch.ones(1, 4)).sum())
optimizer.step()
trained_by, change = type(engine.basic_optimizer).__name__, (engine.module.weight - before).abs().max().item()
print(f"given Still, trained by {trained_by}: the weights changed by {change:.3f}")
assert trained_by == "Still"
assert change == 0
