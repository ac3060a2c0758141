"""Training with transformers, PEFT and FSDP2, as users do it."""

import math
import os
import socket
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from adopt_hf import ADOPT
from experiments.gpu.check import Check
from experiments.gpu.problems import apart

STEPS = 12
FUSED = "backend=fused"
# By name: optim, optim_args, and what else differs in the training arguments.
RUNS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "as it comes": ("adopt", None, {}),
    "fused": ("adopt", FUSED, {}),
    "capturable": ("adopt", f"{FUSED},capturable=true", {}),
    "fp16": ("adopt", FUSED, {"fp16": True, "bf16": False}),
    "8 bits": ("adopt_8bit", None, {}),
    "rounded stochastically": ("adopt", "bf16_stochastic_round=true", {}),
    "layerwise": ("adopt_layerwise", FUSED, {"max_grad_norm": 0}),
    "AdamW": ("adamw_torch_fused", None, {}),
}
DRY = ("as it comes", "fused", "layerwise")
NOT_RESUMED = ("adopt_layerwise",)  # the Trainer saves no state of it


class Trained(NamedTuple):
    """The weights, losses and optimizer at the end of a run, and its folder."""

    weights: list[Tensor]
    losses: list[float]
    optimizer: Optimizer
    folder: str


def trainer(check: Check) -> None:
    """The Trainer with every name: the loss falls, and a resumed run is the uninterrupted one; LoRA+."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="adopt_hf_gpu_check_") as folder:
        for name, (optim, optim_args, more) in RUNS.items():
            if check.dry and name not in DRY:
                continue
            if check.skipped_for_time(name):
                return
            with check.attempt(name):
                _judge(check, name, optim, optim_args, more, os.path.join(folder, name))
        with check.attempt("LoRA+"):
            found = _run(check, "adopt", f"{FUSED},loraplus_lr_ratio=16", {}, os.path.join(folder, "lora"), lora=True)
            ends = f"{found.losses[0]:.3f} to {found.losses[-1]:.3f}"
            check.say(all(map(math.isfinite, found.losses)), "LoRA+", f"loss {ends}")


def _judge(check: Check, name: str, optim: str, optim_args: str | None, more: Mapping[str, Any], folder: str) -> None:
    whole = _run(check, optim, optim_args, more, folder)
    first, last = whole.losses[0], whole.losses[-1]
    falls = all(map(math.isfinite, whole.losses)) and last < first
    check.say(falls, name, f"{type(whole.optimizer).__name__}, loss {first:.3f} to {last:.3f}")
    if optim in NOT_RESUMED:
        return
    resumed = _run(check, optim, optim_args, more, folder, resume=True)
    distance = apart(whole.weights, resumed.weights)
    # A backward pass on a GPU may add in any order, whatever the optimizer: AdamW's row shows how much that is.
    ok = distance == 0 if check.dry else distance < 1e-2
    check.say(ok, f"{name}: resumed is uninterrupted", f"{distance:.1e}")


def _run(
    check: Check,
    optim: str,
    optim_args: str | None,
    more: Mapping[str, Any],
    folder: str,
    resume: bool = False,
    lora: bool = False,
) -> Trained:
    from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

    torch.manual_seed(0)
    length, tokens, width = (8, 32, 16) if check.dry else (32, 128, 64)
    still = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model: Any = GPT2LMHeadModel(
        GPT2Config(vocab_size=tokens, n_positions=length, n_embd=width, n_layer=2, n_head=2, **still)
    )
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules=["c_attn"], fan_in_fan_out=True))
    data = []
    for seed in range(64):
        ids = torch.randint(0, tokens, (length,), generator=torch.Generator().manual_seed(seed))
        data.append({"input_ids": ids, "labels": ids})
    options = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2 if check.dry else 1e-3,
        "weight_decay": 0.1,
        "report_to": [],
        "logging_steps": STEPS // 3,
        "save_steps": STEPS // 2,
        "bf16": not check.dry,
        "use_cpu": check.dry,
        "dataloader_pin_memory": not check.dry,
        "disable_tqdm": True,
        "seed": 1,
        **more,
    }
    args = TrainingArguments(folder, optim=optim, optim_args=optim_args, **options)
    made = Trainer(model, args, train_dataset=data)
    made.remove_callback(PrinterCallback)
    made.train(resume_from_checkpoint=os.path.join(folder, f"checkpoint-{STEPS // 2}") if resume else None)
    weights = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return Trained(weights, losses, getattr(made.optimizer, "optimizer", made.optimizer), folder)


def fsdp2(check: Check) -> None:
    """FSDP2 with one process is one process without it."""
    if check.skipped_when_dry():
        return
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1")
    dist.init_process_group("nccl")
    try:
        ends = []
        for sharded in (False, True):
            torch.manual_seed(0)
            layers = (torch.nn.Linear(65, 127), torch.nn.Tanh(), torch.nn.Linear(127, 3))
            module = torch.nn.Sequential(*layers).to(check.device)
            if sharded:
                fully_shard(module)
            made = ADOPT(module.parameters(), lr=0.01, backend="fused")
            x = torch.ones(4, 65, device=check.device)
            for i in range(6):
                made.zero_grad()
                (module(x * i) ** 2).sum().backward()
                made.step()
            ends.append([p.full_tensor() if sharded else p.detach() for p in module.parameters()])
        distance = apart(*ends)
        check.say(distance < 1e-6, "one process, sharded and not, fused", f"{distance:.1e}")
    finally:
        dist.destroy_process_group()
