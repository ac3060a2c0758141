"""One process on a CPU: ZeRO stage 3 steps with a gradient of an earlier step.

`second` is used in the first step only, so that nothing may change it in the second. With DeepSpeed 0.19.8 its old
gradient is applied again: as it is, and with the optimizer offloaded to the CPU.
"""

import os

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
os.environ.setdefault("MASTER_PORT", "29534")

import deepspeed
import torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # its build takes two minutes


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)

    def forward(self, x, both):
        return (self.first(x) + (self.second(x) if both else 0)).sum()


def change_of_second(offload):
    """Return by how much the second step changes the weights of `second`."""
    model = Two()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": offload, "pin_memory": False}},
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    weights = []
    for both in (True, False):
        engine.backward(engine(torch.ones(1, 4), both))
        engine.step()
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            weights.append(model.second.weight.detach().clone())
    return round((weights[1] - weights[0]).abs().max().item(), 3)


changes = {offload: change_of_second(offload) for offload in ("none", "cpu")}
print("the step without a gradient changes the weights by", changes)
assert changes == {"none": 0, "cpu": 0}
