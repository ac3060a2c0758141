"""What a user of DeepSpeed can write, without and with Hugging Face around it, in one launch of two processes.

torchrun --nproc_per_node 2 deepspeed_job.py FOLDER

Every scenario trains the same small model, parts of which get gradients late or only now and then, and is compared here
with ADOPT in one process on the whole batch. Each process writes FOLDER/rankR.json: scenario -> what was found.
"""

import argparse
import copy
import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DummyOptim
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import adopt_hf
from adopt_hf import ADOPT
from adopt_hf.integrations.deepspeed import config as adopt_config

STEPS, BATCH, ROWS = 20, 8, 14
NUMBERS = {"lr": 1e-2, "weight_decay": 0.1, "decouple": True}


class Late(nn.Module):
    """An embedding with late rows, an adapter whose A has zero gradients while B is zero, an expert used at times."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 6)
        self.hidden = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.lora_a = nn.Parameter(torch.randn(6, 3))
        self.lora_b = nn.Parameter(torch.zeros(3, 6))
        self.expert = nn.Linear(6, 6)
        self.out = nn.Linear(6, 1, bias=False)

    def forward(self, tokens: Tensor, step: int) -> Tensor:
        x = torch.tanh(self.hidden(self.table(tokens)))
        x = x + x @ self.lora_a @ self.lora_b
        if uses_expert(step):
            x = x + self.expert(x)
        return self.out(self.norm(x)).squeeze(-1)


def uses_expert(step: int) -> bool:
    """Not at first, and then two steps of three."""
    return step >= 4 and step % 3 != 0


def make_model() -> Late:
    torch.manual_seed(0)
    return Late()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, ROWS // 2 if step < 5 else ROWS, (BATCH,), generator=generator)
    return tokens, torch.sin(tokens.float())


def share(step: int) -> tuple[Tensor, Tensor]:
    tokens, target = batch(step)
    return tokens.chunk(dist.get_world_size())[dist.get_rank()], target.chunk(dist.get_world_size())[dist.get_rank()]


def groups(model: nn.Module) -> list[dict[str, Any]]:
    return adopt_hf.param_groups(model, NUMBERS["weight_decay"])


def reference() -> tuple[dict[str, Tensor], dict[str, float]]:
    """The weights and the step counts of one process."""
    model = make_model()
    optimizer = ADOPT(groups(model), **NUMBERS)
    for step in range(STEPS):
        tokens, target = batch(step)
        (model(tokens, step) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return weights, {name: optimizer.state[p]["step"].item() for name, p in model.named_parameters()}


def numbers(stage: int, **more: Any) -> dict[str, Any]:
    """A DeepSpeed config that leaves nothing to fill in."""
    made = adopt_config(
        stage,
        precision="fp32",
        train_micro_batch_size_per_gpu=BATCH // dist.get_world_size(),
        gradient_accumulation_steps=1,
        gradient_clipping=0.0,
        **more,
    )
    made.pop("zero_force_ds_cpu_optimizer", None)  # which the tests want to do without
    for target in ("offload_optimizer", "offload_param"):
        if target in made["zero_optimization"]:
            made["zero_optimization"][target]["pin_memory"] = False
    return made


def named(stage: int) -> dict[str, Any]:
    block = {"type": "ADOPT", "params": {**NUMBERS, "betas": "auto", "eps": "auto"}}
    return numbers(stage) | {"optimizer": block}


def weights_of(engine: Any) -> dict[str, Tensor]:
    parameters = dict(engine.module.named_parameters())
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        return {name: p.detach().clone() for name, p in parameters.items()}


def train(engine: Any) -> dict[str, Any]:
    """Train with a DeepSpeed engine; how far the weights are from one process's, and what trained them."""
    for step in range(STEPS):
        tokens, target = share(step)
        engine.backward((engine(tokens, step) - target).square().mean())
        engine.step()
    got, (wanted, steps) = weights_of(engine), reference()
    states = list(engine.basic_optimizer.state.values())
    return {
        "difference": max((got[name] - wanted[name]).abs().max().item() for name in wanted),
        "optimizer": type(engine.basic_optimizer).__qualname__,
        "stage": engine.zero_optimization_stage(),
        "steps": sorted({float(state["step"]) for state in states}),
        "tensor_steps": sorted({t for state in states for t in state.get("tensor_steps", ())}),
        "steps_of_one_process": sorted(set(steps.values())),
        "groups": [group["weight_decay"] for group in engine.basic_optimizer.param_groups],
        "betas": list(engine.basic_optimizer.param_groups[0]["betas"]),
        "eps": engine.basic_optimizer.param_groups[0]["eps"],
    }


def by_name(stage: int) -> dict[str, Any]:
    model = make_model()
    return train(deepspeed.initialize(model=model, model_parameters=groups(model), config=named(stage))[0])


def by_file(folder: Path) -> dict[str, Any]:
    model = make_model()
    path = folder / f"deepspeed{dist.get_rank()}.json"
    path.write_text(json.dumps(named(2)))
    args = SimpleNamespace(deepspeed_config=str(path), local_rank=dist.get_rank())
    return train(deepspeed.initialize(args=args, model=model, model_parameters=groups(model))[0])


def by_object(stage: int, offload: str | None = None) -> dict[str, Any]:
    model = make_model()
    optimizer = ADOPT(groups(model), **NUMBERS)
    return train(deepspeed.initialize(model=model, optimizer=optimizer, config=numbers(stage, offload=offload))[0])


def by_function(offload: str | None) -> dict[str, Any]:
    model = make_model()

    def make(params: Any) -> ADOPT:
        return ADOPT(params, **NUMBERS)

    config = numbers(2, offload=offload)
    return train(deepspeed.initialize(model=model, optimizer=make, model_parameters=groups(model), config=config)[0])


def by_ddp() -> dict[str, Any]:
    model = make_model()
    optimizer = ADOPT(groups(model), **NUMBERS)
    ddp = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    for step in range(STEPS):
        tokens, target = share(step)
        (ddp(tokens, step) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    wanted, steps = reference()
    return {
        "difference": max((p - wanted[name]).abs().max().item() for name, p in model.named_parameters()),
        "steps_equal": steps == {name: optimizer.state[p]["step"].item() for name, p in model.named_parameters()},
        "optimizer": type(optimizer).__qualname__,
    }


def resumed(stage: int, folder: Path) -> dict[str, Any]:
    """As `by_name`, in two halves with a checkpoint between them; the other half of the steps is in the state."""

    def engine() -> Any:
        model = make_model()
        return deepspeed.initialize(model=model, model_parameters=groups(model), config=named(stage))[0]

    first = engine()
    for step in range(6):  # the expert has had one gradient, and missed one
        tokens, target = share(step)
        first.backward((first(tokens, step) - target).square().mean())
        first.step()
    first.save_checkpoint(str(folder / f"resumed{stage}"))
    second = engine()
    second.load_checkpoint(str(folder / f"resumed{stage}"))
    for step in range(6, STEPS):
        tokens, target = share(step)
        second.backward((second(tokens, step) - target).square().mean())
        second.step()
    got, (wanted, _) = weights_of(second), reference()
    return {"difference": max((got[name] - wanted[name]).abs().max().item() for name in wanted)}


def with_accelerate(stage: int) -> dict[str, Any]:
    """A block of "auto" values, filled from Accelerate's DummyOptim."""
    block = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto") | {"decouple": True}
    config = adopt_config(stage, precision="fp32", optimizer=block)
    accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config))
    model = make_model()
    made = groups(model)
    optimizer = DummyOptim(made, lr=NUMBERS["lr"], weight_decay=NUMBERS["weight_decay"])
    loader = DataLoader(TensorDataset(torch.zeros(BATCH)), BATCH // dist.get_world_size())
    accelerator.deepspeed_plugin.deepspeed_config["gradient_clipping"] = 0.0
    engine, _, _ = accelerator.prepare(model, optimizer, loader)
    return train(engine)


def with_trainer(folder: Path, **fields: Any) -> dict[str, Any]:
    """A block under the Trainer: which numbers ADOPT gets."""
    config = adopt_config(2, precision="fp32", optimizer=fields.pop("block"))
    config |= fields.pop("config", {})
    tokens = torch.randint(61, (32, 8), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    args = TrainingArguments(
        str(folder / "trainer"),
        deepspeed=config,
        use_cpu=True,
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        **fields,
    )
    trainer = Trainer(model=model, args=args, train_dataset=[{"input_ids": t, "labels": t} for t in tokens])
    trainer.train()
    base = trainer.model_wrapped.basic_optimizer
    return {
        "optimizer": type(base).__qualname__,
        "wrapper": type(trainer.optimizer.optimizer).__qualname__,
        "groups": [
            {k: v for k, v in group.items() if k not in ("params", "initial_lr", "lr")} for group in base.param_groups
        ],
        "base_lr": base.param_groups[0]["initial_lr"],
        "sizes": [sum(p.numel() for p in group["params"]) for group in base.param_groups],
    }


def wrong(change: Callable[[dict[str, Any]], None], optimizer: bool = False) -> Any:
    model = make_model()
    config = copy.deepcopy(numbers(2, offload="optimizer") if optimizer else named(2))
    change(config)
    client = ADOPT(groups(model), **NUMBERS) if optimizer else None
    return deepspeed.initialize(model=model, optimizer=client, model_parameters=groups(model), config=config)


def scenarios(folder: Path) -> dict[str, Callable[[], Any]]:
    adam_block = {"type": "AdamW", "params": {"lr": "auto"}}
    auto = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
    return {
        **{f"by name, stage {stage}": functools.partial(by_name, stage) for stage in (0, 1, 2, 3)},
        "by name in a file": functools.partial(by_file, folder),
        **{f"by object, stage {stage}": functools.partial(by_object, stage) for stage in (0, 1, 2, 3)},
        **{f"offloaded, stage {stage}": functools.partial(by_object, stage, "optimizer") for stage in (1, 2, 3)},
        "all offloaded, stage 3": functools.partial(by_object, 3, "parameters"),
        "by function": functools.partial(by_function, None),
        "by function, offloaded": functools.partial(by_function, "optimizer"),
        "by DDP": by_ddp,
        **{f"resumed, stage {stage}": functools.partial(resumed, stage, folder) for stage in (1, 2, 3)},
        "error: forced away": lambda: wrong(lambda c: c.update(zero_force_ds_cpu_optimizer=True), optimizer=True),
        "error: unknown key": lambda: wrong(lambda c: c["optimizer"]["params"].update(adam_w_mode=True)),
        "error: bad value": lambda: wrong(lambda c: c["optimizer"]["params"].update(betas=[0.9, 1.5])),
        "error: lr auto": lambda: wrong(lambda c: c["optimizer"]["params"].update(lr="auto")),
        **{f"Accelerate, stage {stage}": functools.partial(with_accelerate, stage) for stage in (2, 3)},
        "Trainer, auto": functools.partial(with_trainer, folder, block=auto, learning_rate=3e-3, weight_decay=0.1),
        "Trainer, set": functools.partial(
            with_trainer,
            folder,
            block=auto,
            learning_rate=3e-3,
            optim="adopt",
            optim_args="clip_exp=none, beta2=0.99",
            adam_epsilon=1e-7,
        ),
        "Trainer, written": functools.partial(
            with_trainer, folder, block={"lr": 3e-3, "betas": [0.8, 0.99], "weight_decay": 0.0}, learning_rate=3e-3
        ),
        "error: Trainer, contradiction": functools.partial(
            with_trainer, folder, block={"lr": 3e-3, "betas": [0.8, 0.99]}, learning_rate=3e-3, adam_beta2=0.95
        ),
        "error: Trainer, another block": functools.partial(
            with_trainer, folder, block={}, config={"optimizer": adam_block}, optim="adopt"
        ),
    }


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a C++ extension, two minutes to build
    PartialState(cpu=True)
    messages = Messages()
    deepspeed.utils.logger.addHandler(messages)
    deepspeed.utils.logger.setLevel(logging.INFO)
    found: dict[str, Any] = {}
    for name, scenario in scenarios(options.folder).items():
        if options.only and name not in options.only:
            continue
        try:
            found[name] = scenario()
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            if not name.startswith("error: "):
                raise
            found[name] = f"{type(error).__name__}: {error}"
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
    found["world_size"] = dist.get_world_size()
    found["untested"] = [text for text in messages.texts if "untested" in text]
    found["messages"] = len(messages.texts)
    (options.folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found, default=str))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the work is done; now and then a thread of a library aborts the interpreter's own end
