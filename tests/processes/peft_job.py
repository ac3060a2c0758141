"""LoRA+ with the Trainer, in one process or under DeepSpeed: 20 steps of a tiny GPT-2, for every scenario.

torchrun --nproc_per_node N peft_job.py FOLDER SCENARIO...

Every process writes what it saw of them all, FOLDER/rankR.json, and the first one the adapters, FOLDER/SCENARIO.pt.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import peft
import torch
import transformers.trainer
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from transformers import Trainer, default_data_collator

from adopt_hf.integrations.deepspeed import config
from tests.processes.job import CpuAccelerator, arguments, base, make_data, make_model
from tests.support.processes import end, without_extensions

BLOCK = {"lr": "auto", "weight_decay": "auto"}
LR, RATIO = 1e-3, 10
LORAPLUS = f"loraplus_lr_ratio={RATIO}, loraplus_lr_embedding=5e-3"
SCENARIOS: dict[str, dict[str, Any] | None] = {
    "one process": None,
    "one process, one rate": None,
    "stage 2": config(2),
    "stage 3": config(3),
    "block, stage 2": config(2, optimizer=BLOCK),
    "block, stage 3": config(3, optimizer=BLOCK),
}


def train(folder: Path, scenario: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    text = None if "one rate" in scenario else LORAPLUS
    options = argparse.Namespace(optim="adopt", optim_args=text, use_cpu=True, bf16=False, zero=None)
    fields = {"learning_rate": LR, "deepspeed": SCENARIOS[scenario], "save_strategy": "no"}
    trainer = Trainer(
        model=peft.get_peft_model(make_model(), adapter),
        args=arguments(folder, options, **fields),
        train_dataset=make_data(),
        data_collator=default_data_collator,
    )
    trainer.train()
    optimizer, model = base(trainer.optimizer), trainer.model_wrapped
    seen = {
        "world_size": int(os.environ["WORLD_SIZE"]),
        "stage": model.zero_optimization_stage() if hasattr(model, "zero_optimization_stage") else None,
        "optimizer": type(optimizer).__qualname__,
        "rates": [group["initial_lr"] for group in optimizer.param_groups],
    }
    weights = trainer.accelerator.get_state_dict(model)
    return seen, {name: t.detach().clone() for name, t in (weights or {}).items() if "lora" in name}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("scenarios", nargs="+", choices=SCENARIOS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    without_extensions()
    PartialState(cpu=True)
    transformers.trainer.Accelerator = CpuAccelerator
    rank, found = int(os.environ["RANK"]), {}
    for name in options.scenarios:
        found[name], weights = train(options.folder / "run", name)
        if rank == 0:
            torch.save(weights, options.folder / f"{name}.pt")
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
    (options.folder / f"rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    end()
