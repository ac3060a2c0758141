"""DeepSpeed's own meshes under the Trainer, ZeRO++'s secondary partitions (hpZ) and AutoTP: a smoke test of each.

torchrun --nproc_per_node 2 deepspeed_mesh_job.py FOLDER

For each of them 8 steps of a tiny LLaMA with a checkpoint at the fourth, and another Trainer that goes on from there;
FOLDER/NAME-rankR.json says what a process saw, and what a plain loop of one process comes to.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator, set_seed

import adopt_hf
from tests.processes.job import base, digest
from tests.support.processes import end, without_extensions

STEPS, SAVED, BATCH = 8, 4, 8
RATE, DECAY, NORM = 1e-2, 0.1, 0.5
CONFIGS: dict[str, dict[str, Any]] = {
    "ZeRO++ (hpZ)": {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}},
    "AutoTP": {"zero_optimization": {"stage": 1}, "tensor_parallel": {"autotp_size": 2}},
}


def make_model() -> LlamaForCausalLM:
    set_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )


def make_data() -> list[dict[str, Tensor]]:
    rows = torch.randint(61, (BATCH * STEPS, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in rows]


def one_process() -> tuple[list[float], dict[str, float]]:
    """Return the losses of a loop of one process on the same batches, and the figures of its last step."""
    model = make_model()
    optimizer = adopt_hf.ADOPTW(adopt_hf.param_groups(model, DECAY), lr=RATE)
    monitor = adopt_hf.Monitor(optimizer, model, every=STEPS)
    losses = []
    data = make_data()
    for step in range(STEPS):
        loss = model(**default_data_collator(data[BATCH * step : BATCH * (step + 1)])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, without_groups(monitor.figures())


def without_groups(figures: dict[str, float]) -> dict[str, float]:
    return {name: x for name, x in figures.items() if name.startswith("adopt/") and "/group_" not in name}


def train(folder: Path, name: str, resume: bool = False, **more: Any) -> dict[str, Any]:
    """Return what a training has come to, from the start or from its checkpoint."""
    rows = BATCH if name == "AutoTP" else BATCH // 2  # the processes of a tensor parallel group have the same rows
    arguments = TrainingArguments(
        output_dir=str(folder),
        optim="adopt",
        deepspeed={"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto", **CONFIGS[name]},
        per_device_train_batch_size=rows,
        max_steps=STEPS,
        save_steps=SAVED,
        lr_scheduler_type="constant",
        learning_rate=RATE,
        weight_decay=DECAY,
        max_grad_norm=NORM,
        train_sampling_strategy="sequential",
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        **more,
    )
    trainer = Trainer(
        model=make_model(), args=arguments, train_dataset=make_data(), data_collator=default_data_collator
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{SAVED}") if resume else None)
    inner = base(trainer.optimizer)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    tensors = [state[name] for state in inner.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return {
        "optimizer": f"{type(inner).__module__}.{type(inner).__qualname__}",
        "decays": [group["weight_decay"] for group in inner.param_groups],
        "steps": sorted({float(state["step"]) for state in inner.state.values()}),
        "moments": sum(state["exp_avg"].numel() for state in inner.state.values()),
        "parameters": sum(p.numel() for p in make_model().parameters()),
        "digest": digest([*inner.state, *tensors]),
        "losses": [entry["loss"] for entry in logged],
        "figures": without_groups(logged[-1]),
    }


def forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()


def main() -> None:
    folder, rank = Path(sys.argv[1]), os.environ["RANK"]
    torch.set_num_threads(1)
    without_extensions()
    PartialState(cpu=True)
    losses, figures = one_process()
    for name in CONFIGS:
        more = {} if name == "AutoTP" else {"optim_args": "monitor=true"}
        seen = {"one": losses, "figures_of_one": figures, "whole": train(folder / name, name, **more)}
        forget()
        seen["resumed"] = train(folder / name, name, resume=True, **more)
        forget()
        if name == "AutoTP":
            try:
                train(folder / name, name, optim_args="monitor=true")
            except ValueError as error:
                seen["refusal"] = str(error)
            forget()
        (folder / f"{name}-rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
    end()
