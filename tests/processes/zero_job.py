"""The effects of DeepSpeed on ADOPT and of ADOPT on DeepSpeed, seen from inside, in one launch of two processes.

torchrun --nproc_per_node 2 zero_job.py FOLDER

Each process writes FOLDER/rankR.json: scenario -> what was found.
"""

import argparse
import copy
import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import configure_moe_param_groups
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from adopt_hf import ADOPT
from adopt_hf.integrations.deepspeed import arrivals
from adopt_hf.integrations.deepspeed import config as adopt_config
from adopt_hf.integrations.deepspeed.checkpoints import _step_counts
from tests.processes.deepspeed_job import (
    NUMBERS,
    ROWS,
    STEPS,
    Late,
    batch,
    continued,
    groups,
    largest,
    make_model,
    numbers,
    reference,
    share,
    weights_of,
)
from tests.support.processes import end, without_extensions

PACKAGE = str(Path(arrivals.__file__).parents[2])


class WithUnused(Late):
    """A trainable layer that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(6, 6)


def unused_model() -> WithUnused:
    torch.manual_seed(0)
    return WithUnused()


class Counts:
    """The collectives, and the transfers to the host, that adopt_hf asks for."""

    def __init__(self) -> None:
        self.reduced: list[str] = []  # the devices of what is reduced
        self.groups: list[Any] = []
        self.fetched = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        all_reduce, cpu, item = dist.all_reduce, Tensor.cpu, Tensor.item

        def ours() -> bool:
            return sys._getframe(2).f_code.co_filename.startswith(PACKAGE)

        def counted_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if ours():
                self.reduced.append(tensor.device.type)
                self.groups.append(kwargs["group"])
            return all_reduce(tensor, *args, **kwargs)

        def counted_cpu(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.fetched += ours()
            return cpu(tensor, *args, **kwargs)

        def counted_item(tensor: Tensor) -> Any:
            self.fetched += ours()
            return item(tensor)

        dist.all_reduce, Tensor.cpu, Tensor.item = counted_reduce, counted_cpu, counted_item  # type: ignore
        try:
            yield
        finally:
            dist.all_reduce, Tensor.cpu, Tensor.item = all_reduce, cpu, item  # type: ignore[method-assign]


def engine_of(model: nn.Module, stage: int, offload: str | None = None, **config: Any) -> Any:
    made = numbers(stage, offload=offload)
    made["zero_optimization"] |= config.pop("zero", {})
    optimizer = ADOPT(groups(model), **NUMBERS)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=made | config)[0]


def counted(stage: int, offload: str | None = None) -> dict[str, Any]:
    """The collectives and transfers of each step, with late tensors and one that never gets a gradient."""
    model = unused_model()
    # Stage 3 calls the optimizer once for each sub-group, of which there are several.
    engine = engine_of(model, stage, offload, zero={"sub_group_size": 60} if stage == 3 else {})
    calls = 0

    def count_calls(*unused: Any) -> None:
        nonlocal calls
        calls += 1

    engine.basic_optimizer.register_step_pre_hook(count_calls)
    reduced, fetched, devices = [], [], set()
    before = weights_of(engine)
    for step in range(STEPS):
        counts = Counts()
        with counts.counting():
            continued(engine, step, step + 1)
        reduced.append(len(counts.reduced))
        fetched.append(counts.fetched)
        devices |= set(counts.reduced)
    after = weights_of(engine)
    states = engine.basic_optimizer.state
    return {
        "calls": calls / STEPS,
        "reduced": reduced,
        "fetched": fetched,
        "devices": sorted(devices),
        "difference": largest(after, reference()[0] | {n: p for n, p in before.items() if n.startswith("unused")}),
        "unused has state": any(n.startswith("unused") and p in states for n, p in model.named_parameters()),
    }


def apart() -> dict[str, Any]:
    """The default group cannot reduce CPU tensors, as one of NCCL cannot."""
    original, made = dist.get_backend_config, []
    new_group = dist.new_group

    def only_on_gpus(group: Any = None) -> str:
        return "cpu:gloo" if group in made else "cuda:nccl"

    def counted_new_group(ranks: list[int], **kwargs: Any) -> Any:
        made.append(new_group(ranks, **kwargs))
        return made[-1]

    dist.get_backend_config, dist.new_group = only_on_gpus, counted_new_group  # type: ignore[assignment]
    counts = Counts()
    try:
        engines = [engine_of(make_model(), stage) for stage in (2, 3)]
        with counts.counting():
            for engine in engines:
                continued(engine, 0, STEPS)
    finally:
        dist.get_backend_config, dist.new_group = original, new_group
    return {
        "made": [dist.get_process_group_ranks(group) for group in made],
        "only there": bool(counts.groups) and all(group in made for group in counts.groups),
        "difference": max(largest(weights_of(engine), reference()[0]) for engine in engines),
    }


def hidden(stage: int) -> dict[str, Any]:
    """Hooks that see no gradient."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("adopt_hf").addHandler(handler)
    engine = engine_of(make_model(), stage)
    for handle in engine.adopt_arrivals.handles:
        handle.remove()
    continued(engine, 0, STEPS)
    logging.getLogger("adopt_hf").removeHandler(handler)
    return {"difference": largest(weights_of(engine), reference()[0]), "messages": messages}


def overflow(stage: int, offload: str | None = None) -> dict[str, Any]:
    """The expert's first gradient comes in a step that DeepSpeed skips, and the second one three steps later."""
    model = make_model()
    engine = engine_of(model, stage, offload, bf16={"enabled": True, "check_grad_overflow": True})
    used = {2, 5}
    for step in range(7):
        tokens, target = share(step)
        loss = (engine(tokens, 4 if step in used else 0) - target.to(torch.bfloat16)).square().mean()
        engine.backward(loss * float("inf") if step == 2 else loss)
        engine.step()
    counts = {n: t for n, t in engine_counts(engine).items() if n.startswith(("expert", "hidden"))}
    return {"skipped": engine.skipped_steps, "counts": counts}


def engine_counts(engine: Any) -> dict[str, float]:
    """The step count of each tensor of this process, by name."""
    if engine.zero_optimization_stage() > 0:
        return _step_counts(engine)
    states = engine.basic_optimizer.state
    return {n: float(states[p]["step"]) for n, p in engine.module.named_parameters() if p.requires_grad}


def other(model: nn.Module, stage: int) -> Any:
    """An engine with torch's AdamW."""
    adam = torch.optim.AdamW(groups(model), lr=1e-2)
    return deepspeed.initialize(model=model, optimizer=adam, config=numbers(stage))[0]


def refused(stage: int, by: Callable[..., Any], of: Callable[..., Any], folder: Path, **edited: Any) -> dict[str, Any]:
    """An engine that `by` makes loads what one that `of` makes has saved, with the options `edited` in its groups."""
    folder = folder / f"refused, stage {stage}, {by.__name__} {of.__name__} {len(edited)}"
    saved = of(make_model(), stage)
    continued(saved, 0, 3)
    saved.save_checkpoint(str(folder))
    dist.barrier()
    if edited and dist.get_rank() == 0:
        edit_groups(folder, **edited)
    dist.barrier()
    torch.manual_seed(5)
    engine = by(Late(), stage)
    before = weights_of(engine)
    try:
        engine.load_checkpoint(str(folder))
        text = "taken"
    except ValueError as error:
        text = str(error)
    unchanged = largest(weights_of(engine), before)
    engine.load_checkpoint(str(folder), load_optimizer_states=False)
    weights_only = largest(weights_of(engine), weights_of(saved))
    continued(engine, 3, 5)
    return {"text": text, "unchanged": unchanged, "weights only": weights_only}


def edit_groups(folder: Path, **options: Any) -> None:
    """Give the saved groups these options and no others, and let the groups count the steps, as FusedAdam's do."""
    for path in folder.glob("global_step*/*.pt"):
        content = torch.load(path, weights_only=False)
        inside = content
        while isinstance(inside, dict) and "param_groups" not in inside:
            keys = [k for k in ("optimizer_state_dict", "base_optimizer_state", "optimizer") if k in inside]
            inside = inside[keys[0]] if keys else None
        if isinstance(inside, dict):
            inside["param_groups"] = [{"params": group["params"], **options} for group in inside["param_groups"]]
            for state in inside["state"].values():
                state.pop("step", None)
            torch.save(content, path)


FUSED_ADAM = {"lr": 1e-2, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "step": 3}
FORMER_ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "correct_bias": True}


def moved(stage: int) -> dict[str, Any]:
    """Move states away with `offload_states` between two steps, and back."""
    engine = engine_of(make_model(), stage)
    continued(engine, 0, 3)
    engine.offload_states(pin_memory=False)
    engine.reload_states()
    continued(engine, 3, STEPS)
    return {"difference": largest(weights_of(engine), reference()[0])}


def best(folder: Path, gathered: bool = True, really: bool = False) -> dict[str, Any]:
    """The Trainer loads the best of its checkpoints at the end, where the optimizer is on NVMe.

    Args:
        gathered: the Trainer saves the weights in a file, too.
        really: with tensors that are swapped. Else the engine says so when it is asked to load, and they are not.
    """
    config = adopt_config(3, offload="optimizer", precision="fp32", nvme_path=str(folder) if really else None)
    config["zero_optimization"]["offload_optimizer"]["pin_memory"] = really
    if not gathered:
        del config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
        config["zero_optimization"]["offload_optimizer"] |= {"device": "nvme", "nvme_path": str(folder)}
    torch.manual_seed(0)
    width = 256 if really else 8
    model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=8, n_embd=width, n_layer=1, n_head=1))
    args = TrainingArguments(
        str(folder / "best"),
        deepspeed=config,
        use_cpu=True,
        max_steps=4,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        greater_is_better=True,  # so that the first is the best
        report_to="none",
        disable_tqdm=True,
        optim="adopt",
        learning_rate=1e-2,
    )
    tokens = torch.randint(61, (32, 8), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": t, "labels": t} for t in tokens]
    trainer = Trainer(model=model, args=args, train_dataset=data, eval_dataset=data[:4])
    last: dict[str, Tensor] = {}
    load, engine_class = Trainer._load_best_model, deepspeed.DeepSpeedEngine
    on_nvme = engine_class.zero_nvme_offload_optimizer

    def as_if_on_nvme(trainer: Any) -> None:
        last.update(weights_of(trainer.model_wrapped))
        engine_class.zero_nvme_offload_optimizer = lambda engine: True
        try:
            load(trainer)
        finally:
            engine_class.zero_nvme_offload_optimizer = on_nvme

    trainer._load_best_model = functools.partial(as_if_on_nvme, trainer)  # type: ignore[method-assign]
    trainer.train()
    loaded, path = weights_of(trainer.model_wrapped), trainer.state.best_model_checkpoint
    saved = load_file(Path(path, "model.safetensors"))
    found = {
        "best": str(path),
        "from the last": largest(loaded, last),
        "from the best": largest(loaded, {name: saved[name] for name in loaded}),
        "swapped": len([p for p in folder.rglob("*.swp") if p.stat().st_size >= 2**20]),
    }
    AcceleratorState._reset_state(reset_partial_state=False)
    GradientState._reset_state()
    return found


def few_bits_on_nvme(bits: int) -> None:
    """An engine that says that its optimizer is on NVMe."""
    model, engine_class = make_model(), deepspeed.DeepSpeedEngine
    on_nvme = engine_class.zero_nvme_offload_optimizer
    engine_class.zero_nvme_offload_optimizer = lambda engine: True
    try:
        optimizer = ADOPT(groups(model), **NUMBERS, state_bits=bits)
        deepspeed.initialize(model=model, optimizer=optimizer, config=numbers(3, offload="optimizer"))
    finally:
        engine_class.zero_nvme_offload_optimizer = on_nvme


class Gate(nn.Module):
    """Tokens of the first half of the table go to the first expert, and the others to the second."""

    def __init__(self, mixture: nn.Module) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, 6)
        self.mixture = mixture
        self.out = nn.Linear(6, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        side = torch.where(tokens < ROWS // 2, 1.0, -1.0)
        x = torch.cat([side[:, None], self.table(tokens)[:, 1:]], 1)
        mixed = self.mixture(x)
        return self.out(x + (mixed[0] if isinstance(mixed, tuple) else mixed)).squeeze(-1)


class Both(nn.Module):
    """The mixture in one process."""

    def __init__(self, expert: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList([expert, copy.deepcopy(expert)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, :1] > 0, self.experts[0](x), self.experts[1](x))


def gated(mixture: Callable[[nn.Module], nn.Module]) -> Gate:
    torch.manual_seed(0)
    expert = nn.Linear(6, 6)
    made = mixture(expert)
    torch.manual_seed(1)
    return Gate(made)


def parallel(expert: nn.Module) -> MoE:
    """DeepSpeed's mixture, one expert a process, with a gate that is not trained."""
    made = MoE(6, expert, num_experts=2, ep_size=2, k=1, capacity_factor=2.0, min_capacity=0, use_rts=False)
    weight = made.deepspeed_moe.gate.wg.weight.requires_grad_(False)
    with torch.no_grad():
        weight.zero_()[:, 0] = torch.tensor([20.0, -20.0])
    return made


def experts(stage: int, block: bool = False) -> dict[str, Any]:
    """Each process has one of two experts; the second gets its first token in step 5.

    Args:
        block: ADOPT is named in the config.
    """
    single = gated(Both)
    optimizer = ADOPT(single.parameters(), **NUMBERS)
    for step in range(STEPS):
        tokens, target = batch(step)
        (single(tokens) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model = gated(parallel)
    trained = [p for p in model.parameters() if p.requires_grad]
    if block:
        config = numbers(stage) | {"optimizer": {"type": "ADOPT", "params": NUMBERS}}
        given: list[Any] = [{"params": trained[::2]}, {"params": trained[1::2]}] if stage == 2 else trained
        engine = deepspeed.initialize(model=model, model_parameters=given, config=config)[0]
    else:
        made = ADOPT(configure_moe_param_groups([{"params": trained, "name": "all"}]), **NUMBERS)
        engine = deepspeed.initialize(model=model, optimizer=made, config=numbers(stage))[0]
    for step in range(STEPS):
        tokens, target = share(step)
        engine.backward((engine(tokens) - target).square().mean())
        engine.step()
    own = {n.rpartition(".")[2]: p for n, p in model.mixture.named_parameters() if p.requires_grad}
    wanted = dict(single.mixture.experts[dist.get_rank()].named_parameters())
    outside = {n: p for n, p in model.named_parameters() if "mixture" not in n}
    return {
        "expert": largest(own, wanted),
        "outside": largest({n: p for n, p in single.named_parameters() if n in outside}, outside),
        "counts": {n.rpartition(".")[2]: t for n, t in engine_counts(engine).items() if "mixture" in n},
    }


def scenarios(folder: Path) -> dict[str, Callable[[], Any]]:
    return {
        **{f"counted, stage {stage}": functools.partial(counted, stage) for stage in (0, 1, 2, 3)},
        **{f"counted, offloaded, stage {stage}": functools.partial(counted, stage, "optimizer") for stage in (1, 2, 3)},
        "apart": apart,
        "hidden, stage 2": functools.partial(hidden, 2),
        **{f"overflow, stage {stage}": functools.partial(overflow, stage) for stage in (1, 2, 3)},
        **{
            f"overflow, offloaded, stage {stage}": functools.partial(overflow, stage, "optimizer")
            for stage in (1, 2, 3)
        },
        **{
            f"{name}, stage {stage}": functools.partial(refused, stage, by, of, folder, **edited)
            for name, by, of, edited in (
                ("AdamW takes ADOPT", other, engine_of, {}),
                ("ADOPT takes AdamW", engine_of, other, {}),
                ("ADOPT takes FusedAdam", engine_of, other, FUSED_ADAM),
                ("ADOPT takes the former AdamW", engine_of, other, FORMER_ADAMW),
            )
            for stage in (0, 1, 2, 3)
        },
        "best, on NVMe": functools.partial(best, folder),
        "error: best, on NVMe, without weights": functools.partial(best, folder, gathered=False),
        **{f"error: {bits} bits on NVMe": functools.partial(few_bits_on_nvme, bits) for bits in (8, 16)},
        **{f"moved, stage {stage}": functools.partial(moved, stage) for stage in (1, 2)},
        "error: moved, stage 3": functools.partial(moved, 3),
        **{f"experts, stage {stage}": functools.partial(experts, stage) for stage in (0, 1, 2)},
        **{f"experts by name, stage {stage}": functools.partial(experts, stage, block=True) for stage in (0, 1, 2)},
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="scenarios")
    parser.add_argument("--nvme", action="store_true", help="only the scenario that needs libaio")
    options = parser.parse_args()
    torch.set_num_threads(1)
    without_extensions()
    PartialState(cpu=True)
    chosen = scenarios(options.folder)
    if options.nvme:
        chosen = {"best, really on NVMe": functools.partial(best, options.folder, really=True)}
    found: dict[str, Any] = {}
    for name in options.only or chosen:
        try:
            found[name] = chosen[name]()
        except (ValueError, TypeError, RuntimeError, AssertionError) as error:
            if not name.startswith("error: "):
                raise
            found[name] = f"{type(error).__name__}: {error}"
        print("done:", name, flush=True)
    found["world_size"] = dist.get_world_size()
    (options.folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
    end()
