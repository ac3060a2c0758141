"""One process on a CPU: ZeRO stage 3 with the optimizer on NVMe resumes without the optimizer's state.

Adam trains two param groups for two steps, saves, and takes a third step. A new engine loads the checkpoint and takes
the third step, too. `large` is swapped to the disk. `small` stays in memory, because it has less than 1 MiB. With
DeepSpeed 0.19.8 the state of both is lost, and `small` has its initial weights.

DeepSpeed compiles its aio extension at the first use, which needs libaio (`apt-get install libaio-dev`).
"""

import os
import tempfile

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
os.environ.setdefault("MASTER_PORT", "29536")

import deepspeed
import torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # its build takes two minutes
PIPELINES = {"no pipeline": {}, "pipeline": {"pipeline_read": True, "pipeline_write": True, "buffer_count": 8}}


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.large = torch.nn.Linear(512, 1024, bias=False)
        self.small = torch.nn.Linear(1024, 1, bias=False)

    def forward(self, x):
        return self.small(self.large(x)).sum()


def make_engine(seed, disk, lr, pipeline):
    deepspeed.zero.Init.param_id = 0  # as in a new process: the names of the files have these numbers
    torch.manual_seed(seed)
    model = Two()
    groups = [{"params": [model.large.weight]}, {"params": [model.small.weight]}]
    offload = {"device": "nvme", "nvme_path": disk, "pin_memory": False, **pipeline}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3, "offload_optimizer": offload},
    }
    return deepspeed.initialize(model=model, optimizer=torch.optim.Adam(groups, lr=lr), config=config)[0]


def step(engine, number):
    torch.manual_seed(number)
    engine.backward(engine(torch.randn(1, 512)))
    engine.step()


def weights(engine):
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {name: layer.weight.detach().clone() for name, layer in engine.module.named_children()}


def differences(one, other):
    return {name: round((one[name] - other[name]).abs().max().item(), 4) for name in one}


def resumed(pipeline):
    """Return how far the weights of a resumed run are from those of one without a stop, and its learning rate."""
    with tempfile.TemporaryDirectory() as folder:
        whole = make_engine(0, f"{folder}/whole", 0.01, pipeline)
        step(whole, 1)
        step(whole, 2)
        whole.save_checkpoint(f"{folder}/checkpoint")
        saved = weights(whole)
        step(whole, 3)
        other = make_engine(1, f"{folder}/other", 0.02, pipeline)
        other.load_checkpoint(f"{folder}/checkpoint")
        loaded = weights(other)
        step(other, 3)
        lr = other.basic_optimizer.param_groups[0]["lr"]
        return differences(saved, loaded), differences(weights(whole), weights(other)), lr


for name, pipeline in PIPELINES.items():
    at_load, after_step, lr = resumed(pipeline)
    found = f"loaded weights differ by {at_load}, those of the next step by {after_step}, lr {lr} instead of 0.01"
    print(f"{name}: {found}")
    assert at_load == after_step == {"large": 0.0, "small": 0.0}
    assert lr == 0.01
