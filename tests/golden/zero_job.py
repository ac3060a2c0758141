"""Train under DeepSpeed, and write or read the checkpoints in FOLDER.

torchrun --nproc_per_node 2 zero_job.py write FOLDER OUT      or      ... read FOLDER OUT
torchrun --nproc_per_node 1 zero_job.py universal FOLDER OUT

Each process writes OUT/rankR.json: the checkpoint -> a row for each step.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

from adopt_hf import param_groups
from adopt_hf.integrations.deepspeed import config
from tests.golden.cases import HALF, STEPS
from tests.golden.tensors import digest, first_numbers, values
from tests.support.processes import end, without_extensions

RANKS = 2  # of the run that writes
SAVED: dict[str, dict[str, Any]] = {
    "zero1_16_bits": {"stage": 1, "state_bits": 16},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
}
UNIVERSAL = "zero2"  # the one that also exists as a universal checkpoint


class Model(nn.Module):
    """A model whose gradients are exact. One tensor gets its first gradient late."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(first, (5, 7)))
        self.late = nn.Parameter(values(first + 1, (2, 4)))
        self.bias = nn.Parameter(values(first + 2, (3,)))

    def forward(self, step: int, ranks: Sequence[int]) -> Tensor:
        """Return a loss whose gradient is the mean of those of some ranks."""
        named = [(i, p) for i, p in enumerate(self.parameters()) if p is not self.late or step >= 2]
        losses = [
            (p * values(1000 * (step + 1) + 100 * rank + i, p.shape, wide=True)).sum() / len(ranks)
            for i, p in named
            for rank in ranks
        ]
        return torch.stack(losses).sum()


def engine_of(first: int, stage: int, universal: bool = False, **options: Any) -> Any:
    """Return an engine with an ADOPTW. The numbers of its model begin at `first`."""
    block = {"lr": 2.0**-6, "weight_decay": 0.125, "backend": "reference", **options}
    made = config(
        stage,
        precision="fp32",
        train_micro_batch_size_per_gpu=1,
        gradient_accumulation_steps=1,
        gradient_clipping=0.0,
        optimizer=block,
    )
    made["optimizer"]["type"] = "ADOPTW"
    if universal:
        made["checkpoint"] = {"load_universal": True}
    model = Model(first)
    return deepspeed.initialize(model=model, model_parameters=param_groups(model, 0.125), config=made)[0]


def rows(engine: Any, first: int, last: int, ranks: Sequence[int]) -> list[str]:
    """Train from step `first` to `last`, and return a row for each step."""
    found = []
    for step in range(first, last):
        engine.backward(engine(step, ranks))
        engine.step()
        parameters = dict(engine.module.named_parameters())
        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            weights = {name: p.detach().clone() for name, p in parameters.items()}
        states = {
            f"{i} {name}": x
            for i, state in enumerate(engine.basic_optimizer.state.values())
            for name, x in sorted(state.items())
        }
        numbers = ", ".join(f"{name} {first_numbers(x)}" for name, x in weights.items())
        found.append(f"parameters {digest(weights)}, state {digest(states)}: {numbers}")
    return found


def write(folder: Path) -> dict[str, list[str]]:
    """Write a checkpoint after `HALF` steps, and go on."""
    found = {}
    for name, options in SAVED.items():
        engine, ranks = engine_of(0, **options), (dist.get_rank(),)
        found[name] = rows(engine, 0, HALF, ranks)
        engine.save_checkpoint(str(folder / name))
        found[name] += rows(engine, HALF, STEPS, ranks)
        dist.barrier()
    if dist.get_rank() == 0:
        for script in folder.rglob("*.py"):  # copies of DeepSpeed's own
            script.unlink()
    return found


def read(folder: Path) -> dict[str, list[str]]:
    """Go on from each checkpoint with a model that began elsewhere."""
    found = {}
    for name, options in SAVED.items():
        engine = engine_of(50, **options)
        engine.load_checkpoint(str(folder / name))
        found[name] = rows(engine, HALF, STEPS, (dist.get_rank(),))
    return found


def read_universal(folder: Path) -> dict[str, list[str]]:
    """Go on in one process from the universal checkpoint."""
    engine = engine_of(50, universal=True, **SAVED[UNIVERSAL])
    engine.load_checkpoint(str(folder / "universal"))
    return {"universal": rows(engine, HALF, STEPS, range(RANKS))}


def main() -> None:
    """Do what the command line says."""
    what, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    without_extensions()
    PartialState(cpu=True)
    found = {"write": write, "read": read, "universal": read_universal}[what](folder)
    (out / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    end()
