"""What the libraries cannot do on CPUs, tried with AdamW and with ADOPT. `mesh_job.py --failures` writes the errors."""

import argparse
import json
import os

import torch
from accelerate import ParallelismConfig
from peft import LoraConfig, get_peft_model

import adopt_hf
from experiments.launches.meshes import MESHES, NOT_PREPARED
from tests.processes.mesh_parts import MeshAccelerator, forget, make_model, sharding


def sharded_twice(options: argparse.Namespace, cls: type[torch.optim.Optimizer]) -> None:
    """Let Accelerate add FSDP2 to a model with tensor parallelism."""
    with sharding(True):
        sizes = {"tp_size": 2, "dp_shard_size": torch.distributed.get_world_size() // 2}
        accelerator = MeshAccelerator(cpu=True, parallelism_config=ParallelismConfig(**sizes))
        model = make_model(options, MESHES[0])
        accelerator.prepare(model, cls(model.parameters()))


def without_tensor_parallelism(options: argparse.Namespace, cls: type[torch.optim.Optimizer]) -> None:
    """Let Accelerate prepare a model that transformers has sharded without tensor parallelism."""
    accelerator = MeshAccelerator(cpu=True, parallelism_config=ParallelismConfig(dp_shard_size=2))
    model = make_model(options, next(mesh for mesh in MESHES if mesh.name == "ep, fsdp"))
    accelerator.prepare(model, cls(model.parameters()))


def context_parallel(options: argparse.Namespace, cls: type[torch.optim.Optimizer]) -> None:
    """Train one step with the tokens of a sequence on two processes."""
    with sharding(True):
        accelerator = MeshAccelerator(cpu=True, parallelism_config=ParallelismConfig(cp_size=2))
        model = make_model(options, None)
        model, optimizer = accelerator.prepare(model, cls(model.parameters()))
        ids, places = torch.arange(32).view(2, 16), torch.arange(16).repeat(2, 1)
        labels = ids.roll(-1, 1)
        buffers = [ids, labels, places]
        with accelerator.maybe_context_parallel(buffers, [1, 1, 1], set(buffers)):
            loss = model(input_ids=ids, position_ids=places, labels=labels, shift_labels=labels, use_cache=False).loss
            accelerator.backward(loss)
            optimizer.step()


def lora_of_rows(options: argparse.Namespace, cls: type[torch.optim.Optimizer]) -> None:
    """Train one step of LoRA on weights that tensor parallelism cuts by rows."""
    model = get_peft_model(make_model(options, MESHES[0]), LoraConfig(r=4, target_modules=["o_proj"]))
    optimizer = cls([p for p in model.parameters() if p.requires_grad])
    ids = torch.arange(32).view(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


FAILURES = {
    "fsdp, tp by Accelerate": sharded_twice,
    NOT_PREPARED: without_tensor_parallelism,
    "cp": context_parallel,
    "tp, LoRA of o_proj": lora_of_rows,
}


def write_failures(options: argparse.Namespace) -> None:
    """Write the errors of what the libraries cannot do here, with AdamW and with ADOPT."""
    errors: dict[str, dict[str, str]] = {}
    for name, attempt in FAILURES.items():
        for cls in (torch.optim.AdamW, adopt_hf.ADOPTW):
            try:
                attempt(options, cls)
            except (ImportError, ValueError, RuntimeError) as error:
                errors.setdefault(name, {})[cls.__name__] = f"{type(error).__name__}: {error}"
            forget()
    if os.environ["RANK"] == "0":
        (options.folder / "failures.json").write_text(json.dumps(errors))
