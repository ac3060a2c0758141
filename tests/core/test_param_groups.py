"""`adopt_hf.param_groups` splits as the Trainer does: the same parameters, in the same order, with the same decay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from adopt_hf import ADOPT, param_groups

SMALL = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def gpt2(**changes: Any) -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=8, n_layer=1, n_head=2, **changes))


def frozen() -> nn.Module:
    model = gpt2()
    for name, p in model.named_parameters():
        p.requires_grad_("wte" not in name and "ln_1" not in name)
    return model


def lora() -> nn.Module:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    return peft.get_peft_model(gpt2(), peft.LoraConfig(r=2, target_modules=["c_attn"], bias="all"))


class Names(nn.Module):
    """Names that are norms, and names that only look it; parameters of the root; a shared one; containers."""

    def __init__(self) -> None:
        super().__init__()
        for name in (
            "norm",
            "input_norm",
            "rmsnorm",
            "my_LayerNorm_2",
            "prenorm",
            "norm_out",
            "normal",
            "batch_normed",
        ):
            self.add_module(name, nn.Linear(2, 2, bias=False))
        self.bias_scale = nn.Parameter(torch.ones(1))
        self.scale = nn.Parameter(torch.ones(()))
        self.norm_ = nn.Parameter(torch.ones(1))
        self.Bias = nn.Parameter(torch.ones(1))
        self.debias = nn.Linear(2, 2)
        self.first = nn.LayerNorm(2)
        self.shared = nn.Linear(2, 2)
        self.shared.weight = self.norm.weight  # its first name is a norm's: not decayed
        self.tied = nn.Linear(2, 2)
        self.norm2 = nn.Module()
        self.norm2.norm = nn.Linear(2, 2)
        self.norm2.norm.weight = self.tied.weight  # its first name is no norm's: decayed
        self.items = nn.ParameterList([nn.Parameter(torch.ones(2)) for _ in range(2)])
        self.by_name = nn.ParameterDict({"a": nn.Parameter(torch.ones(2)), "bias": nn.Parameter(torch.ones(2))})
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.RMSNorm(2), nn.GroupNorm(1, 2))]
        )
        self.inside = nn.LayerNorm(2)
        self.inside.projection = nn.Linear(2, 2)  # inside a LayerNorm


MODELS: dict[str, Callable[[], nn.Module]] = {
    "GPT-2, tied": gpt2,
    "GPT-2, untied": lambda: gpt2(tie_word_embeddings=False),
    "LLaMA": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, attention_bias=True)),
    "LLaMA, tied": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "Qwen3 (q_norm, k_norm)": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=4)),
    "BERT": lambda: BertForSequenceClassification(
        BertConfig(**{k: v for k, v in SMALL.items() if "key_value" not in k})
    ),
    "T5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ),
    "ViT": lambda: ViTForImageClassification(
        ViTConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
    ),
    "frozen": frozen,
    "LoRA": lora,
    "names": Names,
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), backend="eager"),
}
ONE_GROUP: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm as the root": lambda: nn.LayerNorm(4, bias=False),  # no child of anything: the Trainer decays it
    "Linear without bias": lambda: nn.Linear(2, 2, bias=False),
    "norms alone": lambda: nn.Sequential(nn.LayerNorm(2), nn.LayerNorm(2)),
}


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = str(tmp_path_factory.mktemp("trainer"))
    return Trainer(
        model=nn.Linear(1, 1),
        args=TrainingArguments(folder, optim="adamw_torch", weight_decay=0.1, use_cpu=True, report_to="none"),
    )


def trainers_groups(trainer: Trainer, model: nn.Module) -> list[dict[str, Any]]:
    trainer.optimizer, trainer.model = None, model  # an argument of create_optimizer in later transformers only
    return trainer.create_optimizer().param_groups


def comparable(groups: list[dict[str, Any]]) -> list[tuple[float, list[int]]]:
    return [(group["weight_decay"], [id(p) for p in group["params"]]) for group in groups]


@pytest.mark.parametrize("name", [*MODELS, *ONE_GROUP])
def test_equal_to_the_trainers(name: str, trainer: Trainer) -> None:
    model = (MODELS | ONE_GROUP)[name]()
    ours = param_groups(model, 0.1)
    assert comparable(ours) == comparable(trainers_groups(trainer, model))
    assert [group["weight_decay"] for group in ours] == [0.1, 0.0]
    assert all(set(group) == {"params", "weight_decay"} for group in ours)
    assert all(p.requires_grad for group in ours for p in group["params"])
    assert [bool(group["params"]) for group in ours].count(True) == (2 if name in MODELS else 1)


@st.composite
def modules(draw: st.DrawFn, depth: int = 3) -> nn.Module:
    """A tree of modules whose names are made of the words of the rule."""
    word = st.sampled_from(["norm", "layernorm", "rmsnorm", "bias", "_", "x", "ln", "Norm", "LayerNorm", "1"])
    names = st.lists(word, min_size=1, max_size=3).map("".join)
    module = draw(
        st.sampled_from([nn.Module, lambda: nn.LayerNorm(1), lambda: nn.RMSNorm(1), lambda: nn.Linear(1, 1)])
    )()
    for name in draw(st.lists(names, unique=True, max_size=3)):
        if not hasattr(module, name):
            if depth == 0 or draw(st.booleans()):
                module.register_parameter(name, nn.Parameter(torch.ones(1)))
            else:
                module.add_module(name, draw(modules(depth - 1)))
    return module


@given(modules())
def test_equal_to_the_trainers_rule_on_any_names(model: nn.Module) -> None:
    trainable = dict(model.named_parameters())
    if not trainable:
        return
    decayed = Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]  # it asks nothing of the Trainer
    expected = [p for name, p in trainable.items() if name in decayed]
    assert [id(p) for p in param_groups(model, 0.1)[0]["params"]] == [id(p) for p in expected]


def test_adopt_takes_them() -> None:
    optimizer = ADOPT(param_groups(gpt2(), 0.1), lr=1e-3, decouple=True)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [group["decouple"] for group in optimizer.param_groups] == [True, True]


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), float("inf"), "0.1", None, True])
def test_bad_weight_decay(weight_decay: Any) -> None:
    with pytest.raises(ValueError, match=r"\Aweight_decay must be a finite number >= 0, got ") as error:
        param_groups(nn.Linear(2, 2), weight_decay)
    assert repr(weight_decay) in str(error.value)


@pytest.mark.parametrize(
    "given",
    [nn.Linear(2, 2).parameters(), [nn.Linear(2, 2).weight], {"a": 1}, None],
    ids=["parameters", "list", "dict", "None"],
)
def test_it_takes_a_module(given: Any) -> None:
    for more in ((), (0.1,)):
        with pytest.raises(TypeError, match=rf"\Aparam_groups takes a module, got a {type(given).__name__}: write "):
            param_groups(given, *more)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False)], ids=["none", "frozen"])
def test_nothing_to_train(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=rf"\A{type(model).__name__} has no parameter .*: unfreeze some first"):
        param_groups(model, 0.1)
