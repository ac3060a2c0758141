"""The ways to use ADOPT with DeepSpeed, without and with Hugging Face around it, in one launch of two processes.

torchrun --nproc_per_node 2 deepspeed_job.py FOLDER

Every scenario trains the same small model, parts of which get gradients late or only now and then, and is compared here
with ADOPT in one process on the whole batch. Each process writes FOLDER/rankR.json: scenario -> what was found.
"""

import argparse
import base64
import copy
import functools
import gc
import json
import logging
import weakref
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

early_initialize = deepspeed.initialize  # as `from deepspeed import initialize` binds it, before adopt_hf is imported

import adopt_hf  # noqa: E402
from adopt_hf import ADOPT  # noqa: E402
from adopt_hf.integrations.deepspeed import config as adopt_config  # noqa: E402
from tests.support.processes import end, without_extensions  # noqa: E402

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


class Experts(nn.Module):
    """A mixture that DeepSpeed's stage 3 takes as a whole: each process may use another of its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.experts[which](x)


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 6)
        self.mixture = Experts()
        self.out = nn.Linear(6, 1)

    def forward(self, tokens: Tensor, which: int) -> Tensor:
        x = self.table(tokens)
        return self.out(x + torch.tanh(self.mixture(x, which))).squeeze(-1)


def route(step: int, rank: int) -> int:
    """The second expert is used from step 3 on, at first by one process alone, then by either or both."""
    return 0 if step < 3 else int(rank == 0) if step < 8 else (step + rank * (step % 3)) % 2


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
    continued(engine, 0, STEPS)
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


def routed(stage: int) -> dict[str, Any]:
    """Processes that use different tensors in a step."""
    torch.manual_seed(0)
    single = Routed()
    optimizer = ADOPT(groups(single), **NUMBERS)
    for step in range(STEPS):
        for rank, (tokens, target) in enumerate(zip(*(t.chunk(2) for t in batch(step)), strict=True)):
            ((single(tokens, route(step, rank)) - target).square().mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.manual_seed(0)
    model = Routed()
    if stage == 3:
        deepspeed.utils.set_z3_leaf_modules(model, [Experts])
    engine = deepspeed.initialize(model=model, optimizer=ADOPT(groups(model), **NUMBERS), config=numbers(stage))[0]
    for step in range(STEPS):
        tokens, target = share(step)
        engine.backward((engine(tokens, route(step, dist.get_rank())) - target).square().mean())
        engine.step()
    return {"difference": largest(weights_of(engine), dict(single.named_parameters()))}


def round_robin(stage: int) -> dict[str, Any]:
    model = make_model()
    config = named(stage)
    config["zero_optimization"]["round_robin_gradients"] = True
    return train(deepspeed.initialize(model=model, model_parameters=groups(model), config=config)[0])


def accumulated(stage: int, offload: str | None, uses: Callable[[int, int], bool]) -> dict[str, Any]:
    """Two micro-batches a step and clipping; `uses(step, micro_batch)` says when the expert is used."""
    clip = 0.3
    single = make_model()
    optimizer = ADOPT(groups(single), **NUMBERS)
    model = make_model()
    config = numbers(stage, offload=offload) | {
        "gradient_accumulation_steps": 2,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": clip,
    }
    engine = deepspeed.initialize(model=model, optimizer=ADOPT(groups(model), **NUMBERS), config=config)[0]
    clipped = 0
    for step in range(STEPS):
        tokens, target = (t.chunk(4) for t in batch(step))
        for micro in range(2):
            now = 4 if uses(step, micro) else 0  # a step of uses_expert, and one that is not
            for rank in range(2):
                part = 2 * micro + rank
                ((single(tokens[part], now) - target[part]).square().mean() / 4).backward()
            part = 2 * micro + dist.get_rank()
            engine.backward((engine(tokens[part], now) - target[part]).square().mean())
            engine.step()
        clipped += int(nn.utils.clip_grad_norm_(single.parameters(), clip) > clip)
        optimizer.step()
        optimizer.zero_grad()
    return {"difference": largest(weights_of(engine), dict(single.named_parameters())), "clipped": clipped}


def largest(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max((got[name] - wanted[name]).abs().max().item() for name in wanted)


def frozen(stage: int) -> dict[str, Any]:
    model = make_model()
    model.table.requires_grad_(False)
    optimizer = ADOPT(model.parameters(), **NUMBERS)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=numbers(stage))[0]
    before = weights_of(engine)
    tokens, target = share(0)
    for _ in range(2):
        engine.backward((engine(tokens, 0) - target).square().mean())
        engine.step()
    after = weights_of(engine)
    return {"moved": sorted(name for name in before if not torch.equal(before[name], after[name]))}


def freed(stage: int) -> dict[str, Any]:
    """Return the parts that are left of an engine that no variable refers to."""
    model = make_model()
    optimizer = ADOPT(groups(model), **NUMBERS)
    engine = deepspeed.initialize(model=model, optimizer=optimizer, config=numbers(stage))[0]
    tokens, target = share(0)
    engine.backward((engine(tokens, 0) - target).square().mean())
    engine.step()
    engine.destroy()
    alive = {name: weakref.ref(x) for name, x in (("engine", engine), ("optimizer", optimizer), ("model", model))}
    del engine, optimizer, model
    gc.collect()
    return {"alive": [name for name, reference in alive.items() if reference() is not None]}


def by_base64() -> dict[str, Any]:
    model = make_model()
    config = base64.urlsafe_b64encode(json.dumps(named(2)).encode()).decode()
    return train(deepspeed.initialize(model=model, model_parameters=groups(model), config=config)[0])


def by_early_import() -> dict[str, Any]:
    model = make_model()
    return train(early_initialize(model=model, optimizer=ADOPT(groups(model), **NUMBERS), config=numbers(2))[0])


def by_subclass() -> dict[str, Any]:
    class Mine(ADOPT):
        pass

    model = make_model()
    return train(deepspeed.initialize(model=model, optimizer=Mine(groups(model), **NUMBERS), config=numbers(2))[0])


def twice_with_the_same_arguments(folder: Path) -> dict[str, Any]:
    path = folder / f"twice{dist.get_rank()}.json"
    path.write_text(json.dumps(named(2)))
    args = SimpleNamespace(deepspeed_config=str(path), local_rank=dist.get_rank())
    models = [make_model(), make_model()]
    found = [train(deepspeed.initialize(args=args, model=m, model_parameters=groups(m))[0]) for m in models]
    return {"difference": max(one["difference"] for one in found), "args": args.deepspeed_config == str(path)}


def by_function_without_parameters() -> dict[str, Any]:
    model = make_model()
    made = deepspeed.initialize(
        model=model, optimizer=lambda p: ADOPT(p, **NUMBERS), config=numbers(2, offload="optimizer")
    )
    return {"optimizer": type(made[0].basic_optimizer).__qualname__}


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


def continued(engine: Any, first: int, last: int) -> None:
    for step in range(first, last):
        tokens, target = share(step)
        engine.backward((engine(tokens, step) - target).square().mean())
        engine.step()


HALF = 6  # the expert has had two gradients by then


def resumed(stage: int, folder: Path) -> dict[str, Any]:
    """As `by_name`, in two halves with a checkpoint between them."""
    models = [make_model(), make_model()]
    first, second = (deepspeed.initialize(model=m, model_parameters=groups(m), config=named(stage))[0] for m in models)
    continued(first, 0, HALF)
    first.save_checkpoint(str(folder / f"resumed{stage}"))
    second.load_checkpoint(str(folder / f"resumed{stage}"))
    continued(second, HALF, STEPS)
    return {"difference": largest(weights_of(second), reference()[0])}


def half(stage: int, folder: Path) -> dict[str, Any]:
    model = make_model()
    engine = deepspeed.initialize(model=model, model_parameters=groups(model), config=named(stage))[0]
    continued(engine, 0, HALF)
    engine.save_checkpoint(str(folder / "half"))
    return {}


def other_half(stage: int, folder: Path) -> dict[str, Any]:
    """From a universal checkpoint of what `half` has saved."""
    model = make_model()
    config = named(stage) | {"checkpoint": {"load_universal": True}}
    engine = deepspeed.initialize(model=model, model_parameters=groups(model), config=config)[0]
    engine.load_checkpoint(str(folder / "half"))
    counted = sorted({t for state in engine.basic_optimizer.state.values() for t in state["tensor_steps"]})
    continued(engine, HALF, STEPS)
    return {"difference": largest(weights_of(engine), reference()[0]), "counted": counted}


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
    width = fields.pop("width", 8)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=8, n_embd=width, n_layer=1, n_head=1))
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


def given_to_the_trainer(folder: Path, config: dict[str, Any], by: str, **fields: Any) -> None:
    args = TrainingArguments(
        str(folder / "given"),
        deepspeed=adopt_config(2, precision="fp32") | config,
        use_cpu=True,
        report_to="none",
        **fields,
    )
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    given = (
        {"optimizer_cls_and_kwargs": adopt_hf.trainer_kwargs(args)}
        if by == "class"
        else {"optimizers": (ADOPT(model.parameters()), None)}
    )
    tokens = torch.zeros(8, dtype=torch.long)
    Trainer(model=model, args=args, train_dataset=[{"input_ids": tokens, "labels": tokens}] * 8, **given).train()


def wrong(change: Callable[[dict[str, Any]], None], optimizer: bool = False) -> Any:
    model = make_model()
    config = copy.deepcopy(numbers(2, offload="optimizer") if optimizer else named(2))
    change(config)
    client = ADOPT(groups(model), **NUMBERS) if optimizer else None
    return deepspeed.initialize(model=model, optimizer=client, model_parameters=groups(model), config=config)


def second_micro_batch(step: int, micro: int) -> bool:
    return micro == 1 and step >= 2 and step % 3 != 0


def first_micro_batch(step: int, micro: int) -> bool:
    return micro == 0 and step >= 2


def whole_steps(step: int, micro: int) -> bool:
    return step >= 2 and step % 3 != 0


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
        **{f"routed apart, stage {stage}": functools.partial(routed, stage) for stage in (0, 3)},
        **{f"round robin, stage {stage}": functools.partial(round_robin, stage) for stage in (1, 2)},
        **{
            f"accumulated{', offloaded' if offload else ''}, stage {stage}": functools.partial(
                accumulated, stage, offload, uses
            )
            for stage, offload, uses in (
                (0, None, second_micro_batch),
                (1, None, second_micro_batch),
                (2, None, second_micro_batch),
                (3, None, second_micro_batch),
                (1, "optimizer", second_micro_batch),
                (2, "optimizer", whole_steps),
                (3, "optimizer", whole_steps),
            )
        },
        "error: accumulated, offloaded, stage 2": functools.partial(accumulated, 2, "optimizer", second_micro_batch),
        "error: accumulated, offloaded, stage 3": functools.partial(accumulated, 3, "optimizer", first_micro_batch),
        **{f"frozen, stage {stage}": functools.partial(frozen, stage) for stage in (0, 2, 3)},
        **{f"freed, stage {stage}": functools.partial(freed, stage) for stage in (0, 2)},
        "by base64": by_base64,
        "by an early import": by_early_import,
        "by a subclass": by_subclass,
        "twice with the same arguments": functools.partial(twice_with_the_same_arguments, folder),
        "by function without parameters": by_function_without_parameters,
        "error: Trainer, class and another block": functools.partial(
            given_to_the_trainer, folder, {"optimizer": adam_block}, "class"
        ),
        "error: Trainer, object and another block": functools.partial(
            given_to_the_trainer, folder, {"optimizer": adam_block}, "object"
        ),
        "error: Trainer, object": functools.partial(given_to_the_trainer, folder, {}, "object"),
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
        "Trainer, 8 bits": functools.partial(
            with_trainer, folder, block=auto | {"state_bits": 8}, learning_rate=3e-3, weight_decay=0.1, width=64
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
    parser.add_argument("--only", nargs="*", help="scenarios")
    parser.add_argument("--half", type=int, metavar="STAGE", help="train the first half of the steps, and save")
    parser.add_argument("--other_half", type=int, metavar="STAGE", help="and the second, from a universal checkpoint")
    options = parser.parse_args()
    torch.set_num_threads(1)
    without_extensions()
    PartialState(cpu=True)
    messages = Messages()
    deepspeed.utils.logger.addHandler(messages)
    deepspeed.utils.logger.setLevel(logging.INFO)
    found: dict[str, Any] = {}
    chosen = scenarios(options.folder)
    if options.half is not None:
        chosen = {"half": functools.partial(half, options.half, options.folder)}
    elif options.other_half is not None:
        chosen = {"other half": functools.partial(other_half, options.other_half, options.folder)}
    elif options.only:
        chosen = {name: chosen[name] for name in options.only}
    for name, scenario in chosen.items():
        try:
            found[name] = scenario()
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            if not name.startswith("error: "):
                raise
            found[name] = f"{type(error).__name__}: {error}"
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()
        print("done:", name, flush=True)  # the last one of a log that ends is not the one that hangs
    found["world_size"] = dist.get_world_size()
    found["untested"] = [text for text in messages.texts if "an untested" in text]
    found["messages"] = len(messages.texts)
    (options.folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
    end()
