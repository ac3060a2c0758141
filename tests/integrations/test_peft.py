"""Adapters of peft under the real Trainer, on a tiny Llama. For every method of the table, in three precisions:

- the adapter's parameters train and have state, and the base keeps its bits; moments are float32;
- a resumed run ends bit for bit where an uninterrupted one does, in the precision that it had;
- an adapter that is saved and loaded gives the same logits, and merged the same to rounding.

Beside the table:

- LoRA+ by `optim_args` has the groups of peft's own function, and keeps their ratio through warm-up and resume;
- an adapter or a layer that comes in mid-training trains as if an optimizer of its own began there;
- bad input ends before the first step, with one line.
"""

import ast
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, deepspeed_optim_sched

import adopt_hf
from adopt_hf import ADOPT, ADOPTW
from adopt_hf.integrations.deepspeed import ds_config
from adopt_hf.integrations.peft import LoraPlus, loraplus_groups
from tests.integrations.conftest import optimizer_of
from tests.support.tensors import equal

peft = pytest.importorskip("peft", reason="peft is not installed")
create_loraplus_optimizer = pytest.importorskip("peft.optimizers").create_loraplus_optimizer

STEPS, SAVED = 6, 3
LR, WEIGHT_DECAY, RATIO = 2e-2, 0.1, 16.0
LLAMA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def llama(dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(LLAMA | changes))).to(dtype)


def lora(**changes: Any) -> Any:
    options = {"r": 2, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_dropout": 0.1}
    return peft.LoraConfig(**{"task_type": "CAUSAL_LM", **options, **changes})


class Method(NamedTuple):
    adapter: Callable[[], Any]
    loraplus: str | None = None  # by "optim_args", or by "peft", its function
    merges: bool = True


METHODS = {
    "LoRA": Method(lora),
    "LoRA+ by optim_args": Method(lora, "optim_args"),
    "LoRA+ by peft": Method(lora, "peft"),
    "rsLoRA": Method(lambda: lora(use_rslora=True)),
    "DoRA": Method(lambda: lora(use_dora=True)),
    "IA3": Method(lambda: peft.IA3Config(task_type="CAUSAL_LM")),
    "prompt tuning": Method(lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), merges=False),
}

PRECISIONS = {  # of the base and of the adapter
    "fp32": (torch.float32, torch.float32),
    "bf16 base": (torch.bfloat16, torch.float32),
    "bf16": (torch.bfloat16, torch.bfloat16),
}


def adapted(adapter: Any, precision: str = "fp32") -> Any:
    base, of_adapter = PRECISIONS[precision]
    model = peft.get_peft_model(llama(base), adapter, autocast_adapter_dtype=of_adapter != base)
    return model.to(of_adapter) if of_adapter == base else model  # a prompt is float32 unless told otherwise


def data() -> list[dict[str, Tensor]]:
    tokens = torch.randint(64, (16, 8), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def arguments(folder: Path, **fields: Any) -> TrainingArguments:
    defaults = {
        "optim": "adopt",
        "learning_rate": LR,
        "weight_decay": WEIGHT_DECAY,
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "save_steps": SAVED,
        "warmup_steps": 2,
        "lr_scheduler_type": "linear",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **(defaults | fields))


def trainable(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in tensors.items()}


# -- the table ---------------------------------------------------------------------------------------------------------


class Runs(NamedTuple):
    """A run, and another that goes on from the checkpoint of its middle."""

    method: Method
    precision: str
    start: dict[str, Tensor]  # every parameter
    whole: Trainer
    resumed: Trainer
    folder: Path


def trainer_of(method: Method, precision: str, folder: Path) -> Trainer:
    model, options = adapted(method.adapter(), precision), {}
    if method.loraplus == "peft":
        optimizer = create_loraplus_optimizer(
            model, ADOPTW, lr=LR, loraplus_lr_ratio=RATIO, loraplus_weight_decay=WEIGHT_DECAY
        )
        options = {"optimizers": (optimizer, None)}
    optim_args = f"loraplus_lr_ratio={RATIO}" if method.loraplus == "optim_args" else None
    return Trainer(model=model, args=arguments(folder, optim_args=optim_args), train_dataset=data(), **options)


def marks(method: str, precision: str) -> tuple[pytest.MarkDecorator, ...]:
    """Every method in float32 and every precision of LoRA are everyday tests, the other pairs slow ones."""
    return () if precision == "fp32" or method == "LoRA" else (pytest.mark.slow,)


PAIRS = [pytest.param((m, p), marks=marks(m, p), id=f"{m}-{p}") for m in METHODS for p in PRECISIONS]


@pytest.fixture(scope="module", params=PAIRS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    method, precision = METHODS[request.param[0]], request.param[1]
    folder = tmp_path_factory.mktemp("runs")
    whole = trainer_of(method, precision, folder / "whole")
    start = copies(dict(whole.model.named_parameters()))
    whole.train()
    resumed = trainer_of(method, precision, folder / "resumed")
    resumed.train(resume_from_checkpoint=str(folder / "whole" / f"checkpoint-{SAVED}"))
    return Runs(method, precision, start, whole, resumed, folder)


def test_the_adapter_alone_trains(runs: Runs) -> None:
    base_dtype, adapter_dtype = PRECISIONS[runs.precision]
    optimizer = optimizer_of(runs.whole)
    assert type(optimizer) is ADOPTW
    assert {state["step"].item() for state in optimizer.state.values()} <= {STEPS, STEPS - 2}  # LoRA's A
    adapters = trainable(runs.whole.model)
    assert 0 < sum(p.numel() for p in adapters.values()) < 0.2 * sum(t.numel() for t in runs.start.values())
    assert {id(p) for p in optimizer.state} == {id(p) for p in adapters.values()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in adapters.values()}
    for name, p in runs.whole.model.named_parameters():
        assert p.dtype == (adapter_dtype if name in adapters else base_dtype)
        assert torch.equal(p, runs.start[name]) == (name not in adapters), name


def test_moments_are_float32(runs: Runs) -> None:
    for trainer in (runs.whole, runs.resumed):
        moments = [s[name] for s in optimizer_of(trainer).state.values() for name in ("exp_avg", "exp_avg_sq")]
        assert {t.dtype for t in moments} == {torch.float32}
        assert all(t.count_nonzero() for t in moments)


def test_resumed_is_bit_for_bit_uninterrupted(runs: Runs) -> None:
    def of(trainer: Trainer) -> dict[str, Any]:
        return {
            "parameters": dict(trainer.model.named_parameters()),
            "trainable": sorted(trainable(trainer.model)),
            "optimizer": optimizer_of(trainer).state_dict(),
            "schedule": trainer.lr_scheduler.state_dict()["_last_lr"],
        }

    whole, resumed = of(runs.whole), of(runs.resumed)
    assert [name for name in whole if not equal(whole[name], resumed[name])] == []
    files = [runs.folder / "whole" / f"checkpoint-{step}" / "adapter_model.safetensors" for step in (SAVED, STEPS)]
    assert files[0].read_bytes() != files[1].read_bytes(), "nothing was trained after the resume"


def test_saved_and_loaded_gives_the_same_logits(runs: Runs) -> None:
    """And merged, in float64: two layers of products of at most 34 numbers round to 1e-12 of logits of order 1."""
    tokens = torch.arange(12).reshape(1, 12)
    folder = runs.folder / "whole" / f"checkpoint-{STEPS}"
    base, of_adapter = PRECISIONS[runs.precision]
    with torch.no_grad():
        loaded = peft.PeftModel.from_pretrained(llama(base), folder, autocast_adapter_dtype=of_adapter != base).eval()
        trained = runs.whole.model.eval()
        assert torch.equal(loaded(input_ids=tokens).logits, trained(input_ids=tokens).logits)
        if runs.method.merges:
            loaded = loaded.double()
            adapter = loaded(input_ids=tokens).logits
            merged = loaded.merge_and_unload()
            assert type(merged) is LlamaForCausalLM
            torch.testing.assert_close(merged(input_ids=tokens).logits, adapter, atol=1e-12, rtol=0)
            assert (llama(base).eval().double()(input_ids=tokens).logits - adapter).abs().max() > 1e-4


class _Steps(TrainerCallback):
    count = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.count += 1


def test_other_optimizers_resume_as_they_did(tmp_path: Path) -> None:
    """The Trainer alone turns a 16-bit adapter into float32; where it no longer does, our patch can go."""
    trainers = [
        Trainer(adapted(lora(), "bf16"), arguments(tmp_path, optim="adamw_torch"), train_dataset=data())
        for _ in range(2)
    ]
    trainers[0].train()
    trainers[1].train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{SAVED}"))
    dtypes = [{p.dtype for p in trainable(trainer.model).values()} for trainer in trainers]
    assert dtypes == [{torch.bfloat16}, {torch.float32}]


@pytest.mark.parametrize("optim", ["adopt", "adamw_torch"])
def test_the_best_adapter_is_loaded_as_it_is(optim: str, tmp_path: Path) -> None:
    """And into the parameters that the optimizer has. The Trainer alone makes new ones, in float32."""
    args = arguments(
        tmp_path, optim=optim, eval_strategy="steps", eval_steps=SAVED, save_steps=SAVED, load_best_model_at_end=True
    )
    trainer = Trainer(adapted(lora(), "bf16"), args, train_dataset=data(), eval_dataset=data())
    before = trainable(trainer.model)
    trainer.train()
    after = trainable(trainer.model)
    same = [after[name] is p for name, p in before.items()]
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    if optim == "adopt":
        assert all(same)
        assert held == {id(p) for p in after.values()}
        assert {p.dtype for p in after.values()} == {torch.bfloat16}
        best = peft.utils.load_peft_weights(trainer.state.best_model_checkpoint)
        assert {name: p.dtype for name, p in best.items()} == dict.fromkeys(best, torch.bfloat16)
        for name, p in peft.get_peft_model_state_dict(trainer.model).items():
            assert torch.equal(p, best[name])
    else:  # where this no longer holds, our patch can go
        assert not any(same)
        assert {p.dtype for p in after.values()} == {torch.float32}


# -- LoRA+ -------------------------------------------------------------------------------------------------------------


def native() -> nn.Module:
    model = llama()
    model.add_adapter(lora())
    return model


def unfrozen_norm() -> nn.Module:
    model = adapted(lora())
    model.base_model.model.model.norm.requires_grad_(True)
    return model


EMBEDDING = ["q_proj", "embed_tokens"]
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # and how many groups
    "LoRA": (lambda: adapted(lora()), 2),
    "DoRA": (lambda: adapted(lora(use_dora=True)), 2),
    "rsLoRA": (lambda: adapted(lora(use_rslora=True)), 2),
    "embeddings": (lambda: adapted(lora(target_modules=EMBEDDING)), 3),
    "embeddings, DoRA": (lambda: adapted(lora(target_modules=EMBEDDING, use_dora=True)), 3),
    "biases": (
        lambda: peft.get_peft_model(llama(attention_bias=True), lora(bias="all")),
        3,
    ),
    "a head": (lambda: adapted(lora(modules_to_save=["lm_head"])), 2),
    "two adapters": (lambda: two_adapters(), 2),
    "add_adapter of transformers": (native, 2),
}


def two_adapters() -> nn.Module:
    model = adapted(lora())
    model.add_adapter("second", lora(r=3))
    model.base_model.set_adapter(["default", "second"])
    return model


@pytest.mark.parametrize("name", MODELS)
def test_the_groups_are_those_of_pefts_function(name: str, tmp_path: Path) -> None:
    """Every number of every group, and the order of the parameters in it; empty groups are left out."""
    make, count = MODELS[name]
    model = make()
    text = f"loraplus_lr_ratio={RATIO}, loraplus_lr_embedding=1e-3"
    ours = Trainer(model, arguments(tmp_path, optim_args=text)).create_optimizer()
    theirs = create_loraplus_optimizer(
        model,
        ADOPTW,
        lr=LR,
        loraplus_lr_ratio=RATIO,
        loraplus_lr_embedding=1e-3,
        loraplus_weight_decay=WEIGHT_DECAY,
        seed=42,  # the Trainer's own
    )

    def plain(group: dict[str, Any]) -> dict[str, Any]:
        return group | {"params": [id(p) for p in group["params"]]}

    assert type(ours) is type(theirs) is ADOPTW
    assert len(ours.param_groups) == count
    assert [plain(g) for g in ours.param_groups] == [plain(g) for g in theirs.param_groups if g["params"]]


def test_what_is_decayed_is_the_trainers_rule(tmp_path: Path) -> None:
    """It differs from peft's, which decays an RMSNorm; the learning rates do not."""
    model = unfrozen_norm()
    norm = model.base_model.model.model.norm.weight
    trainer = Trainer(model, arguments(tmp_path, optim_args=f"loraplus_lr_ratio={RATIO}"))
    decayed = set(trainer.get_decay_parameter_names(model))
    names = {id(p): name for name, p in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    for group in groups:
        assert {names[id(p)] in decayed for p in group["params"]} == {group["weight_decay"] == WEIGHT_DECAY}
    (of_norm,) = [group for group in groups if any(p is norm for p in group["params"])]
    assert (of_norm["weight_decay"], of_norm["lr"]) == (0.0, LR * RATIO)


def test_a_partitioned_tensor_is_sorted_by_its_whole_shape() -> None:
    """ZeRO 3 leaves an empty tensor of one dimension and `ds_shape`."""

    def groups(model: nn.Module) -> list[tuple[float, list[str]]]:
        names = {id(p): name for name, p in model.named_parameters()}
        made = loraplus_groups(model, LoraPlus(RATIO, 1e-6), LR, WEIGHT_DECAY)
        return [(group["lr"], [names[id(p)] for p in group["params"]]) for group in made]

    model = adapted(lora(use_dora=True, modules_to_save=["lm_head"]))
    whole = groups(model)
    for p in model.parameters():
        p.ds_shape = p.shape
        p.data = torch.empty(0)
    assert groups(model) == whole
    assert [rate for rate, _ in whole] == [LR, LR * RATIO]


def test_a_weight_decay_in_optim_args_is_the_groups(tmp_path: Path) -> None:
    args = arguments(tmp_path, optim_args=f"weight_decay=0.3, loraplus_lr_ratio={RATIO}, lr=0.5")
    groups = Trainer(adapted(lora()), args).create_optimizer().param_groups
    assert [(g["lr"], g["weight_decay"], g["decouple"]) for g in groups] == [(0.5, 0.3, True), (8.0, 0.3, True)]


class _Rates(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_step_begin(self, *_: Any, optimizer: Any, **__: Any) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def test_the_schedule_keeps_the_ratio(tmp_path: Path) -> None:
    """Through warm-up and decay, and after a resume; the rate that the Trainer logs is A's."""
    fields = {"optim_args": f"loraplus_lr_ratio={RATIO}, loraplus_lr_embedding=1e-3", "logging_steps": 1}

    def train(folder: Path, checkpoint: Path | None) -> tuple[list[list[float]], Trainer]:
        rates = _Rates()
        model = adapted(lora(target_modules=EMBEDDING))
        trainer = Trainer(model, arguments(folder, **fields), train_dataset=data(), callbacks=[rates])
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return rates.seen, trainer

    whole, trainer = train(tmp_path / "whole", None)
    schedule = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    for share, rates in zip(schedule, whole, strict=True):
        assert rates == pytest.approx([LR * share, 1e-3 * share, LR * RATIO * share], rel=1e-12)
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == [rates[0] for rates in whole]
    resumed, _ = train(tmp_path / "resumed", tmp_path / "whole" / f"checkpoint-{SAVED}")
    assert resumed == whole[SAVED:]


def test_trainer_kwargs_with_the_model(tmp_path: Path) -> None:
    """The public route trains what the name trains."""
    text = f"loraplus_lr_ratio={RATIO}"
    model = adapted(lora(lora_dropout=0.0))
    named = Trainer(model, arguments(tmp_path / "named", optim_args=text), train_dataset=data())
    model, args = adapted(lora(lora_dropout=0.0)), arguments(tmp_path / "public", optim_args=text, optim="adamw_torch")
    public = Trainer(model, args, train_dataset=data(), optimizer_cls_and_kwargs=adopt_hf.trainer_kwargs(args, model))
    for trainer in (named, public):
        trainer.train()
    assert equal(trainable(named.model), trainable(public.model))
    assert equal(optimizer_of(named).state_dict(), optimizer_of(public).state_dict())


def test_the_info_line_says_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="adopt_hf"):
        Trainer(adapted(lora()), arguments(tmp_path, optim_args="loraplus_lr_ratio=4")).create_optimizer()
    (record,) = [record for record in caplog.records if record.name == "adopt_hf"]
    assert "loraplus_lr_ratio=4.0, loraplus_lr_embedding=1e-06" in record.getMessage()


# -- LoRA+ in a DeepSpeed config; training with it is in tests/processes ---------------------------------------------


def optimizer_and_schedule(folder: Path, **more: Any) -> Any:
    """Return the arguments that the Trainer hands to DeepSpeed, and the model."""
    config = ds_config.config(2, precision="fp32", train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=1)
    processed = HfTrainerDeepSpeedConfig(config | more)
    trainer = Trainer(adapted(lora()), arguments(folder, optim_args=f"loraplus_lr_ratio={RATIO}"))
    processed.trainer_config_process(trainer.args)
    parameters = list(trainable(trainer.model).values())
    return *deepspeed_optim_sched(trainer, processed, trainer.args, STEPS, parameters), trainer.model


BLOCK = {"optimizer": {"type": "ADOPT", "params": {"lr": "auto", "weight_decay": "auto"}}}


def test_a_block_gets_the_groups(tmp_path: Path) -> None:
    dummy, _, model = optimizer_and_schedule(tmp_path, **BLOCK)
    assert type(dummy).__name__ == "DummyOptim"
    wanted = loraplus_groups(model, LoraPlus(RATIO, 1e-6), LR, WEIGHT_DECAY)
    assert [group["lr"] for group in dummy.params] == [LR, LR * RATIO]
    assert equal(dummy.params, wanted)


@pytest.mark.parametrize("block", [BLOCK, {}], ids=["block", "no block"])
def test_a_scheduler_of_deepspeeds_is_refused(block: dict[str, Any], tmp_path: Path) -> None:
    """It has one learning rate for all groups."""
    scheduler = {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}}}
    with pytest.raises(ValueError, match=r'loraplus_lr_ratio=16.*"scheduler" block.*remove that block; lr_scheduler'):
        optimizer_and_schedule(tmp_path, **block, **scheduler)


# -- what comes in mid-training ----------------------------------------------------------------------------------------


def backward(model: nn.Module, step: int) -> None:
    tokens = torch.randint(64, (4, 8), generator=torch.Generator().manual_seed(step))
    model(input_ids=tokens, labels=tokens).loss.backward()


def train(model: nn.Module, optimizers: list[ADOPT], first: int, last: int) -> None:
    for step in range(first, last):
        backward(model, step)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def begun() -> tuple[Any, ADOPT]:
    model = adapted(lora(lora_dropout=0.0)).train()
    optimizer = ADOPT(adopt_hf.param_groups(model, WEIGHT_DECAY), lr=LR, decouple=True)
    train(model, [optimizer], 0, 5)
    return model, optimizer


def add_second(model: Any, active: list[str]) -> list[nn.Parameter]:
    torch.manual_seed(2)
    model.add_adapter("second", lora(r=3, lora_dropout=0.0))
    model.base_model.set_adapter(active)
    return [p for name, p in model.named_parameters() if ".second." in name]


def unfreeze(model: Any) -> list[nn.Parameter]:
    model.base_model.model.lm_head.requires_grad_(True)
    model.base_model.model.model.layers[0].input_layernorm.requires_grad_(True)
    return [p for name, p in model.named_parameters() if p.requires_grad and "lora" not in name]


LATE: dict[str, Callable[[Any], list[nn.Parameter]]] = {
    "an adapter instead of the first": lambda model: add_second(model, ["second"]),
    "an adapter beside the first": lambda model: add_second(model, ["default", "second"]),
    "unfrozen layers": unfreeze,
}


@pytest.mark.parametrize("late", LATE)
def test_what_comes_late_trains_like_a_run_of_its_own(late: str) -> None:
    """One optimizer for old and new is bit for bit the old one, and a fresh one for the new."""
    (model, one), (model_of_two, old) = begun(), begun()
    new = LATE[late](model)
    one.add_param_group({"params": new, "weight_decay": WEIGHT_DECAY})
    new_of_two = LATE[late](model_of_two)
    fresh = ADOPT(new_of_two, lr=LR, weight_decay=WEIGHT_DECAY, decouple=True)
    before = copies({str(i): p for i, p in enumerate(new)})
    counts = {id(p): one.state[p]["step"].item() for group in one.param_groups[:-1] for p in group["params"]}
    assert set(counts.values()) == {5, 3}

    backward(model, 5)
    grads = [p.grad.clone() for p in new]
    backward(model_of_two, 5)
    for optimizer in (one, old, fresh):
        optimizer.step()
        optimizer.zero_grad()
    assert any(g.count_nonzero() for g in grads)
    for i, (p, g) in enumerate(zip(new, grads, strict=True)):  # the first step: v, and nothing else
        assert torch.equal(p, before[str(i)])
        assert torch.equal(one.state[p]["exp_avg_sq"], g * g)
        assert one.state[p]["exp_avg"].count_nonzero() == 0
        assert one.state[p]["step"] == (1 if g.count_nonzero() else 0)

    train(model, [one], 6, 11)
    train(model_of_two, [old, fresh], 6, 11)
    assert equal(dict(model.named_parameters()), dict(model_of_two.named_parameters()))
    assert equal([one.state[p] for p in new], [fresh.state[p] for p in new_of_two])
    assert {one.state[p]["step"].item() for p in new} <= {6, 4}
    assert not any(torch.equal(p, before[str(i)]) for i, p in enumerate(new))
    goes_on = 0 if late == "an adapter instead of the first" else 6
    for group in one.param_groups[:-1]:
        for p in group["params"]:
            assert one.state[p]["step"] == counts[id(p)] + goes_on


def test_a_layer_may_be_in_the_optimizer_from_the_start() -> None:
    """Frozen it is unchanged, and unfrozen it begins as one that is given to the optimizer only then."""
    model = adapted(lora(lora_dropout=0.0)).train()
    optimizer = ADOPT(adopt_hf.param_groups(model, WEIGHT_DECAY), lr=LR, decouple=True)
    held = unfreeze(model)
    optimizer.add_param_group({"params": held, "weight_decay": WEIGHT_DECAY})
    for p in held:
        p.requires_grad_(False)
    train(model, [optimizer], 0, 5)
    assert not any(p in optimizer.state for p in held)
    unfreeze(model)
    train(model, [optimizer], 5, 11)

    other, given_later = begun()
    given_later.add_param_group({"params": unfreeze(other), "weight_decay": WEIGHT_DECAY})
    train(other, [given_later], 5, 11)
    assert equal(dict(model.named_parameters()), dict(other.named_parameters()))
    assert equal(optimizer.state_dict(), given_later.state_dict())


class _Arrives(TrainerCallback):
    """After three steps a second adapter joins the first group: schedulers cannot take another group."""

    def __init__(self) -> None:
        self.new: list[nn.Parameter] = []

    def on_step_end(self, args: Any, state: Any, control: Any, *, model: Any, optimizer: Any, **_: Any) -> None:
        if state.global_step == SAVED:
            self.new = add_second(model, ["default", "second"])
            optimizer.param_groups[0]["params"].extend(self.new)


def test_an_adapter_arrives_under_the_trainer(tmp_path: Path) -> None:
    arrives = _Arrives()
    trainer = Trainer(adapted(lora()), arguments(tmp_path, max_steps=8), train_dataset=data(), callbacks=[arrives])
    trainer.train()
    state = optimizer_of(trainer).state
    counts = {name: state[p]["step"].item() for name, p in trainable(trainer.model).items()}
    assert arrives.new
    for name, count in counts.items():
        # A's first gradient comes after B's first move: two steps late, and one more where the rate begins with 0.
        assert count == (8 if "default" in name else 5) - (2 if "lora_A" in name else 0), name


def test_a_of_lora_begins_at_its_first_gradient() -> None:
    """B is zero before its second step, and A's gradient with it: no trace of those steps in A."""
    model = adapted(lora(lora_dropout=0.0)).train()
    optimizer = ADOPT(adopt_hf.param_groups(model, WEIGHT_DECAY), lr=LR, decouple=True)
    start = copies(trainable(model))
    for step in range(6):
        train(model, [optimizer], step, step + 1)
        for name, p in trainable(model).items():
            late = 2 if "lora_A" in name else 0
            state = optimizer.state[p]
            assert state["step"] == max(0, step + 1 - late)
            assert bool(state["exp_avg_sq"].count_nonzero()) == (step >= late)
            assert torch.equal(p, start[name]) == (step < late + 1), (step, name)


# -- errors ------------------------------------------------------------------------------------------------------------


def flattened() -> nn.Module:
    model = adapted(lora())
    for p in trainable(model).values():
        p._fsdp_flattened = True  # as FSDP1 marks what it has flattened
    return model


RATIO_16 = "loraplus_lr_ratio=16"
BAD: list[tuple[str, Callable[[], nn.Module], list[str]]] = [  # optim_args, the model, words of the message
    ("loraplus_lr_ratio=0.5", lambda: adapted(lora()), ["loraplus_lr_ratio", "0.5", "a finite number >= 1"]),
    ("loraplus_lr_ratio=nan", lambda: adapted(lora()), ["loraplus_lr_ratio", "nan", "a finite number >= 1"]),
    ("loraplus_lr_ratio=high", lambda: adapted(lora()), ["loraplus_lr_ratio", "'high'", "a finite number >= 1"]),
    (
        f"{RATIO_16}, loraplus_lr_embedding=-1",
        lambda: adapted(lora()),
        ["loraplus_lr_embedding", "-1", "a finite number >= 0"],
    ),
    (
        "loraplus_lr_embedding=1e-5",
        lambda: adapted(lora()),
        ["loraplus_lr_embedding=1e-05", "loraplus_lr_ratio=16", ">= 1"],
    ),
    ("loraplus_weight_decay=0.1", lambda: adapted(lora()), ["'loraplus_weight_decay'", "allowed keys", "loraplus_lr"]),
    (RATIO_16, llama, ["loraplus_lr_ratio", "LlamaForCausalLM", "lora_B", "get_peft_model"]),
    (RATIO_16, lambda: adapted(METHODS["IA3"].adapter()), ["loraplus_lr_ratio", "PeftModelForCausalLM", "lora_B"]),
    (RATIO_16, lambda: adapted(METHODS["prompt tuning"].adapter()), ["PeftModelForCausalLM", "lora_B"]),
    (RATIO_16, lambda: adapted(lora(inference_mode=True)), ["lora_B", "requires_grad=True"]),
    (RATIO_16, flattened, ["loraplus_lr_ratio", "FSDP1", "fsdp_version: 2"]),
]


@pytest.mark.parametrize(("text", "make", "words"), BAD, ids=[f"{i} {row[0]}" for i, row in enumerate(BAD)])
def test_bad_input_ends_before_the_first_step(
    text: str, make: Callable[[], nn.Module], words: list[str], tmp_path: Path
) -> None:
    steps = _Steps()
    args = arguments(tmp_path, optim_args=f"weight_decay=0.3, {text}")
    trainer = Trainer(make(), args, train_dataset=data(), callbacks=[steps])
    with pytest.raises(ValueError, match=r"\Aoptim_args: .+\Z") as error:
        trainer.train()
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == []
    assert (steps.count, args.weight_decay, trainer.optimizer) == (0, WEIGHT_DECAY, None)


@pytest.mark.parametrize("ask", [adopt_hf.trainer_kwargs, Trainer.get_optimizer_cls_and_kwargs])
def test_without_a_model(ask: Callable[..., Any], tmp_path: Path) -> None:
    args = arguments(tmp_path, optim_args=RATIO_16)
    with pytest.raises(ValueError, match=r"\Aoptim_args: loraplus_lr_ratio needs the model.*trainer_kwargs\(args, mod"):
        ask(args)


def test_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(adapted(lora()), arguments(tmp_path, optim_args=RATIO_16))
    monkeypatch.setitem(sys.modules, "peft.tuners.lora", None)
    with pytest.raises(ImportError, match=r"\Aoptim_args: loraplus_lr_ratio needs peft \(pip install peft\): "):
        trainer.create_optimizer()


def test_peft_is_imported_by_who_uses_it_alone() -> None:
    """Inside functions, and only in its own file."""
    package = Path(adopt_hf.__file__).parent
    found = {}
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "peft" for name in names):
                found[path.relative_to(package).as_posix()] = node.col_offset
    assert list(found) == ["integrations/peft.py"]
    assert all(found.values()), "at the top of the file"
