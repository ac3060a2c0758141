"""Two processes, a DTensor whose gradient is all zero at first, and then on one shard alone: torchrun ... FOLDER."""

import json
import sys
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from adopt_hf import ADOPT
from tests.support.processes import end

STEPS = 6


def gradient(step: int) -> torch.Tensor:
    grad = torch.linspace(-1, 1, 10).view(5, 2) * (1 + step)
    if step == 0:
        return torch.zeros(5, 2)
    if step < 3:
        grad[3:] = 0  # the second process's rows
    return grad


def main(folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    whole = torch.nn.Parameter(torch.ones(5, 2))
    alone = ADOPT([whole], lr=0.1, backend="reference")
    seen = {}
    for backend in ("reference", "fused"):
        for capturable in (False, True):
            p = torch.nn.Parameter(distribute_tensor(torch.ones(5, 2), mesh, [Shard(0)]))
            optimizer = ADOPT([p], lr=0.1, backend=backend, capturable=capturable)
            for step in range(STEPS):
                p.grad = distribute_tensor(gradient(step), mesh, [Shard(0)])
                optimizer.step()
            weights = p.detach().full_tensor().tolist()
            seen[f"{backend}, {capturable}"] = (optimizer.state[p]["step"].item(), weights)
    for step in range(STEPS):
        whole.grad = gradient(step)
        alone.step()
    seen["alone"] = (alone.state[whole]["step"].item(), whole.tolist())
    (folder / f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    end()
