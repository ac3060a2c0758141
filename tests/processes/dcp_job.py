"""FSDP2 and torch's distributed checkpoints: train, save, and go on with another number of processes.

torchrun --nproc_per_node N dcp_job.py FOLDER FROM TO [--load CHECKPOINT] [--save CHECKPOINT] [--ask_first] [--at STEP]

Steps FROM to TO, on the whole batch in one process without FSDP, on a share of it in several with FSDP2. With --at the
checkpoint is that of a step before the last, and it is written while the training goes on.
"""

import argparse
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import adopt_hf
from tests.support.processes import end

ROWS, BATCH = 10, 8


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 6)
        self.hidden = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.out = nn.Linear(5, 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.norm(torch.tanh(self.hidden(self.table(tokens))))).squeeze(-1)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The later rows of the table are seen from step 5 on."""
    tokens = torch.randint(0, ROWS // 2 if step < 5 else ROWS, (BATCH,), generator=torch.Generator().manual_seed(step))
    return tokens, torch.sin(tokens.float())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--load")
    parser.add_argument("--save")
    parser.add_argument("--at", type=int, help="the step to save after, asynchronously")
    parser.add_argument("--ask_first", action="store_true", help="for the optimizer's state dict, before training")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = Model()
    if world > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = adopt_hf.ADOPT(adopt_hf.param_groups(model, 0.1), lr=0.01, decouple=True)
    if options.ask_first:
        get_optimizer_state_dict(model, optimizer)
    if options.load:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=options.load)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    writing = None
    for step in range(options.first, options.last):
        if step == options.at:
            weights, moments = get_state_dict(model, optimizer)
            # Its thread needs collectives of its own beside those of the training.
            state = {"model": weights, "optimizer": moments}
            writing = dcp.async_save(state, checkpoint_id=options.save, process_group=dist.new_group(backend="gloo"))
        tokens, target = (t.chunk(world)[rank] for t in batch(step))
        (model(tokens) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    if writing is not None:
        writing.result()
    elif options.save:
        weights, moments = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=options.save)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        options.folder.mkdir(parents=True, exist_ok=True)
        torch.save(
            {name: t.wait() if hasattr(t, "wait") else t for name, t in whole.items()}, options.folder / "weights.pt"
        )
        seen = {
            "world_size": world,
            "optimizer": type(optimizer).__qualname__,
            "steps": sorted({state["step"].item() for state in optimizer.state.values()}),
            "sharded": [type(p).__name__ for p in model.parameters()],
            "pid": os.getpid(),
        }
        (options.folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
    end()
