"""Trainer subclasses that make param groups of their own, as three projects write them:

- what `optim_args` says holds in the groups, or an error says which line to change (property: over whole trainings);
- the groups' own numbers stay;
- TrainingArguments are what they were;
- embeddings keep float32 moments where others have 8 bits, or an error says which line to change.
"""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import Trainer

import adopt_hf
from adopt_hf import ADOPT, ADOPTW
from adopt_hf.integrations.transformers.groups import Regroup
from adopt_hf.state.conversion import bits_of
from tests.integrations.conftest import optimizer_of

PROJECTOR_LR, EMBEDDING_LR = 2e-5, 5e-5


class LLaVATrainer(Trainer):
    """Groups first, of `args`, with a learning rate for a part of the model; then it asks."""

    part = "mlp"
    with_model = False

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

            def members(inside: bool, decay: bool) -> list[nn.Parameter]:
                return [p for name, p in named if (self.part in name) == inside and (name in decayed) == decay]

            groups = [
                {"params": members(False, True), "weight_decay": self.args.weight_decay},
                {"params": members(False, False), "weight_decay": 0.0},
                {"params": members(True, True), "weight_decay": self.args.weight_decay, "lr": PROJECTOR_LR},
                {"params": members(True, False), "weight_decay": 0.0, "lr": PROJECTOR_LR},
            ]
            asked = (self.args, self.model) if self.with_model else (self.args,)
            optimizer_cls, optimizer_kwargs = Trainer.get_optimizer_cls_and_kwargs(*asked)
            self.optimizer = optimizer_cls(groups, **optimizer_kwargs)
        return self.optimizer


class LLaVATrainerWithModel(LLaVATrainer):
    with_model = True


class UnslothTrainer(Trainer):
    """It asks first, and its groups have the numbers of the answer: embeddings with a learning rate of their own."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_cls, optimizer_kwargs = Trainer.get_optimizer_cls_and_kwargs(self.args)
            lr, weight_decay = optimizer_kwargs["lr"], optimizer_kwargs.get("weight_decay", 0.0)
            kinds: dict[bool, list[nn.Parameter]] = {False: [], True: []}
            for name, p in self.model.named_parameters():
                kinds["wte" in name].append(p)
            groups = [
                {"params": kinds[False], "weight_decay": weight_decay, "lr": lr},
                {"params": kinds[True], "weight_decay": weight_decay, "lr": EMBEDDING_LR},
            ]
            self.optimizer = optimizer_cls(groups, **optimizer_kwargs)
        return self.optimizer


class AxolotlTrainer(Trainer):
    """It asks with the model; its groups are of `args`, with the learning rate of the answer, and replace `params`."""

    loraplus_lr_ratio: float | None = None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_cls, optimizer_kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            decayed = set(self.get_decay_parameter_names(self.model))
            kinds: dict[str, list[nn.Parameter]] = {"decay": [], "embeddings": [], "no decay": []}
            for name, p in self.model.named_parameters():
                kinds["embeddings" if "wte" in name else "decay" if name in decayed else "no decay"].append(p)
            lr = optimizer_kwargs["lr"]
            groups = [
                {"params": kinds["decay"], "weight_decay": self.args.weight_decay, "lr": lr},
                {"params": kinds["embeddings"], "weight_decay": 0.0, "lr": EMBEDDING_LR},
                {"params": kinds["no decay"], "weight_decay": 0.0, "lr": lr},
            ]
            if self.loraplus_lr_ratio is not None:
                self.optimizer = create_loraplus_optimizer(
                    self.model,
                    optimizer_cls,
                    loraplus_lr_ratio=self.loraplus_lr_ratio,
                    loraplus_weight_decay=self.args.weight_decay,
                    **optimizer_kwargs,
                )
            else:
                if "params" in optimizer_kwargs:
                    groups = optimizer_kwargs.pop("params")
                self.optimizer = optimizer_cls(groups, **optimizer_kwargs)
        return self.optimizer


class AxolotlLoraPlusTrainer(AxolotlTrainer):
    loraplus_lr_ratio = 4.0


# trainer -> the learning rates and weight decays of its groups, L and W being those that are asked for
PATTERNS: dict[type[Trainer], list[tuple[Any, Any]]] = {
    Trainer: [("L", "W"), ("L", 0)],
    LLaVATrainer: [("L", "W"), ("L", 0), (PROJECTOR_LR, "W"), (PROJECTOR_LR, 0)],
    LLaVATrainerWithModel: [("L", "W"), ("L", 0), (PROJECTOR_LR, "W"), (PROJECTOR_LR, 0)],
    UnslothTrainer: [("L", "W"), (EMBEDDING_LR, "W")],
    AxolotlTrainer: [("L", "W"), (EMBEDDING_LR, 0), ("L", 0)],
}
ASKED = [  # fields and optim_args -> lr, weight_decay
    ({"optim_args": "weight_decay=0.3"}, 1e-2, 0.3),
    ({"weight_decay": 0.1}, 1e-2, 0.1),
    ({"weight_decay": 0.1, "optim_args": "weight_decay=0.3"}, 1e-2, 0.3),
    ({"weight_decay": 0.1, "optim_args": "weight_decay=0"}, 1e-2, 0.0),
    ({"weight_decay": 0.1, "optim_args": "weight_decay=0.3, lr=0.004"}, 4e-3, 0.3),
    ({"optim_args": "weight_decay=0.3, lr=0.004"}, 4e-3, 0.3),
]


@pytest.fixture
def make(make_trainer: Any, arguments: Any, tiny_gpt2: Any) -> Callable[..., Trainer]:
    """`make(cls, args)`: a trainer of class `cls` with a tiny GPT-2, LoRA in it if `lora`."""

    def build(cls: type[Trainer], args: Any, lora: bool = False, **config: Any) -> Trainer:
        base = make_trainer(args)
        model = tiny_gpt2(**config)
        if lora:
            model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True))
        return cls(model=model, args=args, train_dataset=base.train_dataset)

    return build


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(("fields", "lr", "weight_decay"), ASKED, ids=lambda x: str(x))
def test_what_is_asked_for_holds(
    pattern: type[Trainer], fields: dict[str, Any], lr: float, weight_decay: float, make: Any, arguments: Any
) -> None:
    args = arguments(lr_scheduler_type="constant", max_steps=2, **fields)
    before = copy.deepcopy(vars(args))
    trainer = make(pattern, args)
    trainer.train()
    optimizer = optimizer_of(trainer)
    assert type(optimizer) is ADOPTW
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}
    expected = [
        ({"L": lr}.get(a, a), weight_decay if b == "W" else 0.0)
        for a, b in PATTERNS[pattern]  # type: ignore[call-overload]
    ]
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == expected
    assert (args.weight_decay, args.learning_rate) == (before["weight_decay"], before["learning_rate"])
    assert args.optim_args == before["optim_args"]


def test_decay_moves_the_weights(make: Any, arguments: Any) -> None:
    """The number in the groups is the one that the steps use: 0.3 by `optim_args` is 0.3 by the field, to the bit."""
    fields = {"lr_scheduler_type": "constant", "max_steps": 3}

    def trained(**more: Any) -> list[torch.Tensor]:
        trainer = make(LLaVATrainer, arguments(**fields, **more), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        trainer.train()
        return [p.detach() for p in trainer.model.parameters()]

    by_field, by_text, without = (
        trained(weight_decay=0.3), trained(optim_args="weight_decay=0.3"), trained(optim_args="eps=1e-6")
    )  # fmt: skip
    assert all(map(torch.equal, by_field, by_text))
    assert not all(map(torch.equal, by_field, without))


def test_create_loraplus_optimizer_of_peft(make: Any, arguments: Any) -> None:
    """Axolotl's own LoRA+, which hands all arguments to peft."""
    trainer = make(AxolotlLoraPlusTrainer, arguments(weight_decay=0.1, optim_args="weight_decay=0.3"), lora=True)
    groups = trainer.create_optimizer().param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [
        (1e-2, 0.3), (1e-6, 0.3), (4e-2, 0.3), (4e-2, 0.0)
    ]  # fmt: skip


def test_loraplus_by_optim_args(make: Any, arguments: Any) -> None:
    """It makes groups. Where others were made that would be lost, an error says what to remove."""
    args = arguments(optim_args="loraplus_lr_ratio=4, weight_decay=0.3")
    trainer = make(Trainer, args, lora=True)
    assert [(g["lr"], g["weight_decay"]) for g in trainer.create_optimizer().param_groups] == [
        (1e-2, 0.3), (4e-2, 0.3)
    ]  # fmt: skip
    for pattern in (LLaVATrainerWithModel, AxolotlTrainer):
        with pytest.raises(ValueError, match=r"\Aoptim_args: loraplus_lr_ratio makes.*have their own lr: remove"):
            make(pattern, args, lora=True).create_optimizer()
    for pattern in (LLaVATrainer, UnslothTrainer):
        with pytest.raises(ValueError, match=r"\Aoptim_args: loraplus_lr_ratio needs the model"):
            make(pattern, args, lora=True).create_optimizer()
    other = make(Trainer, args, lora=True).model
    cls, kwargs = adopt_hf.trainer_kwargs(args, trainer.model)
    with pytest.raises(ValueError, match=r"makes.*of all trainable parameters of the model.* was given others"):
        cls(other.parameters(), **kwargs)


@pytest.mark.parametrize("fields", [{}, {"weight_decay": 0.1}], ids=str)
def test_groups_of_this_package(fields: dict[str, Any], arguments: Any) -> None:
    """A loop of one's own that takes its numbers from TrainingArguments, as the Accelerate recipe does."""
    args = arguments(optim_args="weight_decay=0.3", **fields)
    cls, kwargs = adopt_hf.trainer_kwargs(args)
    made = cls(adopt_hf.param_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), args.weight_decay), **kwargs)
    assert [group["weight_decay"] for group in made.param_groups] == [0.3, 0.0]


# -- groups that do not say it -----------------------------------------------------------------------------------------


def groups(*numbers: Any, **options: Any) -> list[dict[str, Any]]:
    return [
        {"params": [nn.Parameter(torch.ones(2))], **options, **({} if n is None else {"weight_decay": n})}
        for n in numbers
    ]


ZERO, ANOTHER_ZERO = float("0"), float("0")


@pytest.mark.parametrize(
    ("field", "asked", "made", "decays"),
    [
        (0.1, 0.3, [0.1, 0.0], [0.3, 0.0]),
        (0.1, 0.3, [0.1, 0.1], [0.3, 0.3]),
        (0.1, 0.3, [0.1, 0.05], [0.3, 0.05]),  # its own number stays
        (0.1, 0.3, [0.3, 0.0], [0.3, 0.0]),
        (0.1, 0.3, [None, 0.0], [0.3, 0.0]),  # the optimizer's number, which is asked for
        (0.1, 0.3, [0.0, 0.05], None),
        (0.1, 0.0, [0.1, 0.0], [0.0, 0.0]),
        (0.1, 0.0, [0.05, 0.0], None),
        (ZERO, 0.3, [ZERO, ANOTHER_ZERO], [0.3, 0.0]),
        (ZERO, 0.3, [ANOTHER_ZERO, ZERO], [0.0, 0.3]),
        (ZERO, 0.3, [ZERO], [0.3]),
        (ZERO, 0.3, [ZERO, ZERO], None),  # which are decayed? biases must not be
        (ZERO, 0.3, [ANOTHER_ZERO, ANOTHER_ZERO], None),
        (ZERO, 0.3, [0.3, 0.3], [0.3, 0.3]),
    ],
)
def test_which_groups_are_decayed(field: float, asked: float, made: list[Any], decays: list[float] | None) -> None:
    given = groups(*made)
    regroup = Regroup(weight_decay=(field, asked))
    if decays is None:
        with pytest.raises(ValueError, match=rf"\Aoptim_args: weight_decay={asked} .*Write weight_decay={asked} in Tr"):
            ADOPT(given, weight_decay=asked, regroup=regroup)
    else:
        made_of = ADOPT(given, weight_decay=asked, regroup=regroup)
        assert [g["weight_decay"] for g in made_of.param_groups] == decays
    assert [g.get("weight_decay") for g in given] == made, "the caller's groups were changed"


def test_a_learning_rate_that_would_be_lost(arguments: Any) -> None:
    args = arguments(optim_args="lr=0.5", learning_rate=0.1)
    cls, kwargs = adopt_hf.trainer_kwargs(args)
    with pytest.raises(ValueError, match=r"\Aoptim_args: lr=0.5 does not reach.*write learning_rate=0.5 in Training"):
        cls(groups(0.0, lr=args.learning_rate), **kwargs)
    assert cls(groups(0.0, lr=0.2), **kwargs).param_groups[0]["lr"] == 0.2
    assert cls(groups(0.0), **kwargs).param_groups[0]["lr"] == 0.5


def test_whatever_torch_takes(arguments: Any) -> None:
    """Iterators, tensors, and pairs of name and parameter, in groups and without."""
    cls, kwargs = adopt_hf.trainer_kwargs(arguments(optim_args="weight_decay=0.3, state_bits=8"))
    layer = nn.Linear(4, 4)
    for params in (
        layer.parameters(),
        layer.named_parameters(),
        [{"params": layer.parameters()}],
        [{"params": layer.named_parameters()}],
        [{"params": layer.weight}, {"params": layer.bias}],
    ):
        made = cls(params, **kwargs)
        assert [id(p) for g in made.param_groups for p in g["params"]] == [id(p) for p in layer.parameters()]
        assert {g["weight_decay"] for g in made.param_groups} == {0.3}


# -- 8 bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"optim": "adopt_8bit"}, {"optim_args": "state_bits=8"}], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda cls: cls.__name__)
def test_embeddings_keep_float32_or_an_error_says_how(
    pattern: type[Trainer], fields: dict[str, Any], make: Any, arguments: Any
) -> None:
    config = {"n_embd": 64, "vocab_size": 80, "n_positions": 80}  # the embeddings have 5120 elements
    trainer = make(pattern, arguments(**fields), **config)
    if pattern in (LLaVATrainer, UnslothTrainer):
        with pytest.raises(ValueError, match=r"embedding cannot be told.*get_optimizer_cls_and_kwargs\(self.args, sel"):
            trainer.train()
        transformer = trainer.model.transformer
        adopt_hf.keep_float32([transformer.wte.weight, transformer.wpe.weight])  # the other way that it names
    trainer.train()
    for name, p in trainer.model.named_parameters():
        bits = 32 if p.numel() < 4096 or "wte" in name or "wpe" in name else 8
        assert bits_of(optimizer_of(trainer).state[p]) == bits, name


def test_what_cannot_be_an_embedding_needs_no_model(arguments: Any) -> None:
    cls, kwargs = adopt_hf.trainer_kwargs(arguments(optim="adopt_8bit"))
    made = cls([nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8, 32, 4, 4))], **kwargs)
    assert made.param_groups[0]["state_bits"] == 8
