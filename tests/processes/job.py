"""The job of the matrix: 20 steps of a tiny GPT-2 with ADOPT, by the Trainer and by a plain Accelerate loop.

accelerate launch --config_file CONFIG --num_processes N job.py FOLDER [--resume] [--bf16] [--loops trainer accelerate]
torchrun --nproc_per_node N job.py FOLDER --loops trainer --zero STAGE [--universal]

A checkpoint is written at step 10; --resume goes on from that of an earlier job in another FOLDER. Every process writes
what it saw, FOLDER/LOOP/rankR.json, and the first one the weights, FOLDER/LOOP/weights.pt. With --zero the Trainer gets
its DeepSpeed config from Python, as `adopt_hf.integrations.deepspeed.config` makes it.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers.trainer
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
    default_data_collator,
    get_scheduler,
    set_seed,
)

import adopt_hf
from adopt_hf.integrations.deepspeed import config as deepspeed_config
from adopt_hf.integrations.transformers import optim_args
from tests.support.processes import end, without_extensions

STEPS, SAVED = 20, 10
OBSERVED = 5  # steps from one to the next whose figures are compared
GLOBAL_BATCH = 8
HYPERPARAMETERS = {"learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 1.0, "warmup_steps": 3}


def make_model(width: int = 18) -> GPT2LMHeadModel:
    set_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=61,
            n_positions=16,
            n_embd=width,
            n_layer=2,
            n_head=2,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    model.loss_type = "ForCausalLM"  # its name does not tell, and the Trainer would count a label too many
    return model


def make_data() -> list[dict[str, Tensor]]:
    """The rows of the vocabulary's upper half come late: their embeddings have exactly zero gradients until then."""
    generator = torch.Generator().manual_seed(1)
    early = torch.randint(30, (GLOBAL_BATCH * 3, 12), generator=generator)
    late = torch.randint(61, (GLOBAL_BATCH * STEPS, 12), generator=generator)
    return [{"input_ids": row, "labels": row} for row in torch.cat([early, late])]


def arguments(folder: Path, options: argparse.Namespace, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "optim": options.optim,
            "optim_args": options.optim_args,
            "per_device_train_batch_size": GLOBAL_BATCH // int(os.environ.get("WORLD_SIZE", "1")),
            "max_steps": STEPS,
            "lr_scheduler_type": "linear",
            "save_steps": SAVED,
            "train_sampling_strategy": "sequential",
            "use_cpu": options.use_cpu,
            "bf16": options.bf16,
            "report_to": "none",
            "deepspeed": zero_config(options),
            "disable_tqdm": True,
            "logging_steps": 1,
            "seed": 0,
            **HYPERPARAMETERS,
            **more,
        }
    )


def zero_config(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.zero is None:
        return None
    return deepspeed_config(options.zero) | {"checkpoint": {"load_universal": options.universal}}


def shard_on_cpu(state: AcceleratorState) -> None:
    """Accelerate 1.15 turns FSDP on for processes with GPUs alone; on CPUs this does what it would have done."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and state.device.type == "cpu" and state.num_processes > 1:
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        if state._mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(state._mixed_precision)


def deepspeed_is_on() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


class CpuAccelerator(Accelerator):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        shard_on_cpu(self.state)

    def get_state_dict(self, model: Any, unwrap: bool = True) -> dict[str, Tensor]:
        """On a CPU `.cpu()` does not wait for what is gathered, and safetensors cannot read it then."""
        weights = super().get_state_dict(model, unwrap)
        return {} if weights is None else {k: v.wait() if hasattr(v, "wait") else v for k, v in weights.items()}


def base(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that does the steps, under all that is wrapped around it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def local(t: Any) -> Any:
    return t.to_local() if isinstance(t, DTensor) else t


def digest(tensors: list[Tensor]) -> str:
    sha = hashlib.sha256()
    for t in tensors:
        sha.update(local(t).detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def offloaded(model: Any, what: str) -> str:
    """Return where a DeepSpeed engine says that it keeps something."""
    target = getattr(model, what, lambda: None)()
    return "none" if target is None else str(getattr(target.device, "value", target.device))


def look(accelerator: Accelerator, model: Any, optimizer: Any, before: int) -> dict[str, Any]:
    """Return the state of this process after training from step `before` on."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    inner = base(optimizer)
    states = list(inner.state.values())
    moments = [t for s in states for name, t in sorted(s.items()) if name not in ("step", "tensor_steps")]
    devices = sorted({str(local(t).device) for t in moments})
    return {
        "world_size": torch.distributed.get_world_size() if distributed else 1,
        "distributed_type": accelerator.distributed_type.value,
        "engine": f"{type(model).__module__}.{type(model).__qualname__}",
        "stage": model.zero_optimization_stage() if hasattr(model, "zero_optimization_stage") else None,
        "fsdp_version": accelerator.state.fsdp_plugin.fsdp_version
        if accelerator.distributed_type.value == "FSDP"
        else None,
        "offload": [offloaded(model, "zero_offload_optimizer"), offloaded(model, "zero_offload_param")],
        "wrapper": f"{type(getattr(optimizer, 'optimizer', optimizer)).__qualname__}",
        "optimizer": f"{type(inner).__module__}.{type(inner).__qualname__}",
        "groups": [
            {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")} for group in inner.param_groups
        ],
        "state_keys": sorted({key for s in states for key in s}),
        "steps": sorted({float(s["step"]) for s in states}),
        "moments": sum(local(t).numel() for t in moments),
        "moments_bytes": sum(local(t).numel() * local(t).element_size() for t in moments),
        "moments_dtype": sorted({str(t.dtype) for t in moments}),
        "moments_device": devices,
        "dtensors": all(isinstance(t, DTensor) for t in moments),
        "digest": digest(moments),
        "started_at": before,
        "figures": {},
        "parameters": sum(p.numel() for p in make_model().parameters()),
    }


def write(folder: Path, seen: dict[str, Any], weights: dict[str, Tensor] | None, losses: list[float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    (folder / f"rank{rank}.json").write_text(json.dumps(seen | {"losses": losses}, default=str))
    if rank == 0:
        assert weights is not None
        torch.save(
            {k.removeprefix("module."): v.detach().float().cpu().clone() for k, v in weights.items()},
            folder / "weights.pt",
        )


def with_trainer(folder: Path, options: argparse.Namespace) -> None:
    transformers.trainer.Accelerator = CpuAccelerator
    trainer = Trainer(
        model=make_model(options.width),
        args=arguments(folder / "run", options),
        train_dataset=make_data(),
        data_collator=default_data_collator,
        callbacks=[adopt_hf.AdoptMonitor()] if options.optim == "adopt" else [],
    )
    resume = str(options.resume / "trainer" / "run" / f"checkpoint-{SAVED}") if options.resume else None
    trainer.train(resume_from_checkpoint=resume)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    seen = look(trainer.accelerator, trainer.model_wrapped, trainer.optimizer, SAVED if resume else 0)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in logged:
        if entry["step"] % OBSERVED == 0:
            seen["figures"][entry["step"]] = {name: x for name, x in entry.items() if name.startswith("adopt/")}
    write(folder, seen, weights, [entry["loss"] for entry in logged])


def with_accelerate(folder: Path, options: argparse.Namespace) -> None:
    accelerator = CpuAccelerator(
        cpu=options.use_cpu and not deepspeed_is_on(),  # cpu=True turns DeepSpeed off
        mixed_precision="bf16" if options.bf16 else None,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=False),
    )
    model = make_model(options.width)
    if options.optim == "adopt":
        groups = adopt_hf.param_groups(model, HYPERPARAMETERS["weight_decay"])
        given = optim_args.parse(options.optim_args)
        optimizer: torch.optim.Optimizer = adopt_hf.ADOPTW(groups, lr=HYPERPARAMETERS["learning_rate"], **given)
    else:
        groups = adopt_hf.param_groups(model, HYPERPARAMETERS["weight_decay"])
        optimizer = torch.optim.AdamW(groups, lr=HYPERPARAMETERS["learning_rate"])
    loader = DataLoader(
        make_data(), GLOBAL_BATCH // accelerator.num_processes, shuffle=False, collate_fn=default_data_collator
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = get_scheduler(
        "linear", optimizer, num_warmup_steps=HYPERPARAMETERS["warmup_steps"], num_training_steps=STEPS
    )
    accelerator.register_for_checkpointing(schedule)
    done = 0
    if options.resume:
        accelerator.load_state(str(options.resume / "accelerate" / f"checkpoint-{SAVED}"))
        done = SAVED
    before, losses = done, []
    adopt = options.optim == "adopt"
    monitor = adopt_hf.Monitor(optimizer, model, every=OBSERVED) if adopt else None
    figures = {}
    model.train()
    for batch in accelerator.skip_first_batches(loader, done) if done else loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), HYPERPARAMETERS["max_grad_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), "mean").item())
        done += 1
        if monitor is not None and (found := monitor.figures()):
            figures[done] = found
        if done == SAVED:
            accelerator.save_state(str(folder / f"checkpoint-{SAVED}"))
        if done == STEPS:
            break
    weights = accelerator.get_state_dict(model)
    write(folder, look(accelerator, model, optimizer, before) | {"figures": figures}, weights, losses)


LOOPS = {"trainer": with_trainer, "accelerate": with_accelerate}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--use_cpu", action="store_true")
    parser.add_argument("--zero", type=int, help="the stage")
    parser.add_argument("--universal", action="store_true", help="the checkpoint is a universal one")
    parser.add_argument("--width", type=int, default=18, help="of the model")
    parser.add_argument("--optim", default="adopt")
    parser.add_argument("--optim_args")
    parser.add_argument("--loops", nargs="+", default=list(LOOPS), choices=LOOPS)
    options = parser.parse_args()

    torch.set_num_threads(1)
    if deepspeed_is_on() or options.zero is not None:
        without_extensions()
    if options.use_cpu:
        PartialState(cpu=True)  # otherwise every process of DeepSpeed's on the CPU trains alone
    for loop in options.loops:
        LOOPS[loop](options.folder / loop, options)
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()


if __name__ == "__main__":
    main()
    end()
