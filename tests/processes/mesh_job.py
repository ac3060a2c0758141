"""The job of the meshes: a tiny mixture of four experts, trained by the Trainer and by an Accelerate loop.

torchrun --nproc_per_node N mesh_job.py FOLDER [MESH ...] [--resume FOLDER] [--other CHECKPOINT] [--failures]

With N = 1 there is no mesh: it is the reference, and writes the weights that all others load, FOLDER/model. Every
process writes what it saw, FOLDER/MESH/RUN/rankR.json, and the first one the weights, weights.pt. The Accelerate loop
saves a checkpoint at step SAVED; with --resume only this loop runs, from the checkpoints in that folder.

--other      go on, on the first mesh, from the checkpoint of another mesh as well
--failures   write the errors of what the libraries cannot do on CPUs, FOLDER/failures.json
"""

import argparse
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate import DataLoaderConfiguration, ParallelismConfig, PartialState
from accelerate.utils import DistributedType
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import (
    Qwen3MoeForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.distributed import load_optimizer_distributed, save_optimizer_distributed

import adopt_hf
from experiments.launches.meshes import MESHES, Mesh
from tests.processes.job import base, digest, local
from tests.processes.mesh_failures import write_failures
from tests.processes.mesh_parts import (
    DECAY,
    NORM,
    OBSERVED,
    RATE,
    SAVED,
    STEPS,
    MeshAccelerator,
    config,
    forget,
    make_data,
    make_model,
    per_process,
    sharding,
)
from tests.support.processes import end

OTHER_DECAY = "weight_decay=0.1"  # DECAY, by `optim_args`


def whole(t: Tensor) -> Tensor:
    return (t.full_tensor() if isinstance(t, DTensor) else t).detach().float().clone()


def write(folder: Path, model: nn.Module, optimizer: Any, **more: Any) -> None:
    """Write what this process has seen, and the whole weights."""
    inner = base(optimizer)
    names = {p: name.removeprefix("module.") for name, p in model.named_parameters() if p.requires_grad}
    decays = {names[p]: group["weight_decay"] for group in inner.param_groups for p in group["params"]}
    rates = {names[p]: group.get("initial_lr", group["lr"]) for group in inner.param_groups for p in group["params"]}
    states = {names[p]: state for p, state in inner.state.items()}
    moments = {name: [t for key, t in state.items() if key != "step"] for name, state in states.items()}
    seen = {
        "world_size": torch.distributed.get_world_size(),
        "optimizer": f"{type(inner).__module__}.{type(inner).__qualname__}",
        "steps": sorted({float(state["step"]) for state in states.values()}),
        "decays": decays,
        "rates": rates,
        "groups": len(inner.param_groups),
        "placements": {name: str(getattr(p, "placements", None)) for p, name in names.items()},
        "of_moments": {name: sorted({str(getattr(t, "placements", None)) for t in ts}) for name, ts in moments.items()},
        "bits": {name: 8 if "scales" in state else 32 for name, state in states.items()},
        "local": {name: local(p).numel() for p, name in names.items()},
        "local_moments": {name: [local(t).numel() for t in ts] for name, ts in moments.items()},
        "digest": digest([*model.parameters(), *(t for ts in moments.values() for t in ts)]),
    }
    weights = {name: whole(p) for p, name in names.items()}
    folder.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ["RANK"])
    (folder / f"rank{rank}.json").write_text(json.dumps(seen | more))
    if rank == 0:
        torch.save(weights, folder / "weights.pt")


def with_trainer(
    folder: Path,
    options: argparse.Namespace,
    mesh: Mesh | None,
    optim: str = "adopt",
    decay: float = DECAY,
    lora: bool = False,
    **more: Any,
) -> None:
    """Train by the Trainer."""
    model = make_model(options, mesh)
    if lora:
        set_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_A" in name:  # the same whatever is sharded
                    local(p).fill_(0.05)
    arguments = TrainingArguments(
        output_dir=str(folder),
        optim=optim,
        per_device_train_batch_size=per_process(mesh),
        max_steps=STEPS,
        lr_scheduler_type="linear",
        warmup_steps=3,
        learning_rate=RATE,
        weight_decay=decay,
        max_grad_norm=NORM,
        train_sampling_strategy="sequential",
        save_strategy="no",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        seed=0,
        **more,
    )
    monitors = [adopt_hf.AdoptMonitor()] if optim.startswith("adopt") else []
    data = {"train_dataset": make_data(), "data_collator": default_data_collator}
    refusals = []
    if mesh is not None:
        arguments.save_strategy = transformers.trainer_utils.SaveStrategy.STEPS
        try:
            Trainer(model=model, args=arguments, **data)
        except ValueError as error:
            refusals.append(str(error))
        forget()
        arguments.save_strategy = transformers.trainer_utils.SaveStrategy.NO
    trainer = Trainer(model=model, args=arguments, callbacks=monitors, **data)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    write(
        folder,
        model,
        trainer.optimizer,
        losses=[entry["loss"] for entry in logged],
        norms=[entry["grad_norm"] for entry in logged],
        figures={entry["step"]: figures(entry) for entry in logged if entry["step"] % OBSERVED == 0},
        refusals=refusals,
    )


def figures(entry: dict[str, float]) -> dict[str, float]:
    """Return the monitor's figures that do not depend on how the parameters are divided into groups."""
    return {name: x for name, x in entry.items() if name.startswith("adopt/") and "/group_" not in name}


def with_accelerate(
    folder: Path,
    options: argparse.Namespace,
    mesh: Mesh | None,
    state_bits: int = 32,
    checkpoint: Path | None = None,
) -> None:
    """Train by a loop with Accelerate, save at step SAVED, or go on from there."""
    if options.resume is not None and checkpoint is None:
        checkpoint = options.resume / folder.relative_to(options.folder) / "checkpoint"
    by_accelerate = mesh is not None and mesh.is_sharded_by_accelerate
    with sharding(by_accelerate):
        accelerator = MeshAccelerator(
            cpu=True,
            parallelism_config=None if mesh is None else ParallelismConfig(**(mesh.parallelism or {})),
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False),
        )
        model = make_model(options, mesh, sharded=not by_accelerate)
        optimizer = adopt_hf.ADOPTW(adopt_hf.param_groups(model, DECAY), lr=RATE, seed=0, state_bits=state_bits)
        loader = DataLoader(make_data(), per_process(mesh), shuffle=False, collate_fn=default_data_collator)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        done = 0
        if checkpoint is not None:
            load(accelerator, model, optimizer, checkpoint)
            done = SAVED
        before = done
        monitor = adopt_hf.Monitor(optimizer, model, every=OBSERVED)
        losses, norms, seen = [], [], {}
        for batch in accelerator.skip_first_batches(loader, done) if done else loader:
            loss = model(**batch).loss
            accelerator.backward(loss)
            norms.append(float(accelerator.clip_grad_norm_(model.parameters(), NORM)))
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            done += 1
            if found := monitor.figures():
                seen[done] = figures(found)
            if done == SAVED and mesh is not None and checkpoint is None:
                save(accelerator, model, optimizer, folder / "checkpoint")
            if done == STEPS:
                break
        write(folder, model, optimizer, losses=losses, norms=norms, figures=seen, started_at=before)


def save(accelerator: MeshAccelerator, model: Any, optimizer: Any, folder: Path) -> None:
    """Save as the library saves that has sharded the model."""
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.save_state(str(folder))
        return
    model.save_pretrained(folder / "model", distributed_checkpoint=True)
    save_optimizer_distributed(model, base(optimizer), str(folder / "optimizer"))


def load(accelerator: MeshAccelerator, model: Any, optimizer: Any, folder: Path) -> None:
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.load_state(str(folder))
        return
    transformers.distributed.checkpoint._load_model_checkpoint_distributed(model, folder / "model")
    load_optimizer_distributed(model, base(optimizer), str(folder / "optimizer"))


RUNS: dict[str, Callable[[Path, argparse.Namespace, Mesh | None], None]] = {
    "trainer": with_trainer,
    "decay by optim_args": lambda *of: with_trainer(*of, decay=0.0, optim_args=OTHER_DECAY),
    "lora plus": lambda *of: with_trainer(*of, lora=True, optim_args="loraplus_lr_ratio=4"),
    "8 bits by trainer": lambda *of: with_trainer(*of, optim="adopt_8bit"),
    "accelerate": with_accelerate,
    "8 bits": lambda *of: with_accelerate(*of, state_bits=8),
    "adamw": lambda *of: with_trainer(*of, optim="adamw_torch"),
}
OF_LOOP = {"accelerate": ("accelerate", "8 bits")}
OF_LOOP["trainer"] = tuple(name for name in RUNS if name not in OF_LOOP["accelerate"])


def runs_of(mesh: Mesh | None, resumes: bool) -> list[str]:
    """Return the runs on a mesh. On four processes, which take longest, those are left out that two can do as well."""
    loops = ("accelerate", "trainer") if mesh is None else mesh.loops
    found = [name for name in RUNS if any(name in OF_LOOP[loop] for loop in loops)]
    if resumes:
        found = [name for name in found if name in OF_LOOP["accelerate"]]
    if mesh is not None:
        left_out = {"adamw"} if mesh.world_size == 2 else {*OF_LOOP["trainer"][1:], "8 bits"}
        if {"ep_size", "fsdp_size"} <= mesh.distributed.keys():
            left_out.discard("8 bits")  # of strided shards
        found = [name for name in found if name not in left_out]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("meshes", nargs="*")
    parser.add_argument("--model", type=Path, help="the folder of its weights; default: FOLDER/model, which is made")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--failures", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    transformers.trainer.Accelerator = MeshAccelerator
    PartialState(cpu=True)
    if options.model is None:
        options.model = options.folder / "model"
        set_seed(0)
        Qwen3MoeForCausalLM(config()).save_pretrained(options.model)
    chosen: list[Mesh | None] = [mesh for mesh in MESHES if mesh.name in options.meshes]
    for mesh in chosen or [None]:
        for name in runs_of(mesh, options.resume is not None):
            RUNS[name](options.folder / ("one" if mesh is None else mesh.name) / name, options, mesh)
            forget()
    if options.other is not None:
        folder = options.folder / str(chosen[0]) / "from another mesh"
        with_accelerate(folder, options, chosen[0], checkpoint=options.other)
        forget()
    if options.failures:
        write_failures(options)


if __name__ == "__main__":
    main()
    end()
