"""What the ranks of one run send each other for ADOPT: torchrun --nproc_per_node N peers_job.py FOLDER

Each process writes FOLDER/rankR.json. "refused": the error of this rank, if every rank has another learning rate and
DDP. "traffic": launch mode -> optimizer -> for each step, the collectives of gloo, as [name, shape].
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import adopt_hf
from experiments.launches.memory_model import Model
from tests.support.processes import end, without_extensions

STEPS = 4
MODES = ("ddp", "fsdp", "zero0", "zero1", "zero2", "zero3")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": torch.optim.AdamW, "adopt": adopt_hf.ADOPTW}


def make(mode: str, optimizer: str, lr: float = 1e-3) -> Callable[[], None]:
    """Return a function that does one step in a launch mode."""
    torch.manual_seed(0)
    model = Model()
    groups = adopt_hf.param_groups(model, 0.1)
    if mode.startswith("zero"):
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "zero_optimization": {"stage": int(mode[-1])},
            "zero_allow_untested_optimizer": True,
        }
        made = OPTIMIZERS[optimizer](groups, lr=lr)
        engine, *_ = deepspeed.initialize(model=model, optimizer=made, config=config)

        def zero_step() -> None:
            engine.backward(engine(tokens()).square().mean())
            engine.step()

        return zero_step
    if mode == "fsdp":
        fully_shard(model)
    made = OPTIMIZERS[optimizer](adopt_hf.param_groups(model, 0.1), lr=lr)
    wrapped = DistributedDataParallel(model) if mode == "ddp" else model

    def step() -> None:
        wrapped(tokens()).square().mean().backward()
        made.step()
        made.zero_grad()

    return step


def tokens() -> torch.Tensor:
    return torch.arange(8).view(2, 4) + 8 * dist.get_rank()


def refused(mode: str) -> str:
    try:
        make(mode, "adopt", lr=0.1 * (1 + dist.get_rank()))()
    except ValueError as error:
        return str(error)
    return ""


def traffic(mode: str, optimizer: str) -> list[list[tuple[str, list[int]]]]:
    step = make(mode, optimizer)
    found = []
    for _ in range(STEPS):
        dist.barrier()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
            step()
        done = (event for event in seen.events() if event.name.startswith("gloo:"))
        found.append(sorted((event.name, event.input_shapes[0]) for event in done))
    return found


def main(folder: Path) -> None:
    without_extensions()
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    # With FSDP and DeepSpeed the first rank waits in a collective, until the others have ended: test_hosts.py.
    seen: dict[str, Any] = {"refused": refused("ddp")}
    seen["traffic"] = {mode: {name: traffic(mode, name) for name in OPTIMIZERS} for mode in MODES}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end()
