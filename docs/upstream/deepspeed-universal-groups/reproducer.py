"""One process on a CPU: ZeRO stage 3 gives every param group the hyperparameters of the first.

AdamW with weight decay for weights and none for biases is saved, converted to a universal checkpoint and loaded. With
DeepSpeed 0.19.8 the biases are decayed from then on.
"""

import os
import subprocess
import sys
import tempfile

os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
os.environ.setdefault("MASTER_PORT", "29535")

import deepspeed
import torch

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # its build takes two minutes


def make_engine(**more):
    model = torch.nn.Linear(4, 1)
    groups = [
        {"params": [model.weight], "weight_decay": 0.1, "lr": 0.01},
        {"params": [model.bias], "weight_decay": 0.0},
    ]
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, **more}
    return deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(groups, lr=0.02), config=config)[0]


def numbers(engine):
    return [(group["weight_decay"], group["lr"]) for group in engine.basic_optimizer.param_groups]


with tempfile.TemporaryDirectory() as folder:
    engine = make_engine()
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
    engine.save_checkpoint(folder, tag="saved")
    saved = numbers(engine)
    convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers=1"]
    paths = [f"--input_folder={folder}/saved", f"--output_folder={folder}/universal", "--num_merge_workers=1"]
    subprocess.run([*convert, *paths], check=True, stdout=subprocess.DEVNULL)
    other = make_engine(checkpoint={"load_universal": True})
    other.load_checkpoint(folder, tag="universal")
    loaded = numbers(other)
print("weight decay and learning rate of each group: saved", saved, "loaded", loaded)
assert saved == [(0.1, 0.01), (0.0, 0.02)]
assert loaded == saved
