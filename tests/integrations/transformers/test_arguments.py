"""`optim="adopt"` under the real Trainer, on a tiny GPT-2:

- the optimizer is ADOPT, with the Trainer's decay groups and the numbers that DESIGN.md names;
- the name, `trainer_kwargs` without the name, and a loop written by hand train the same weights;
- the arguments survive every way in which they are written and read;
- `register()` is idempotent, `unregister()` leaves nothing, other optimizers do not notice;
- bad input ends before the first step, with one line;
- a killed and resumed run ends bit for bit where an uninterrupted one does.
"""

import copy
import json
import logging
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import HfArgumentParser, Trainer, TrainerCallback, TrainingArguments
from transformers.training_args import OptimizerNames

import adopt_hf
from adopt_hf import ADOPTW, backends
from adopt_hf.hyperparameters import WARMUP_EXPONENT
from tests.integrations.conftest import optimizer_of
from tests.support.forks import BEFORE_TRANSFORMERS
from tests.support.processes import SCRIPTS, python, run
from tests.support.tensors import equal

DEFAULTS = {
    "lr": 1e-2,
    "betas": (0.9, 0.9999),
    "eps": 1e-6,
    "weight_decay": 0.0,
    "decouple": True,
    "clip_exp": 0.25,
    "beta2_warmup": WARMUP_EXPONENT,
    "maximize": False,
    "backend": "auto",
    "capturable": False,
    "state_bits": 32,
    "block_size": 256,
    "bf16_stochastic_round": False,
    "seed": 42,
}

HYPERPARAMETERS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # fields of TrainingArguments -> what differs
    ({}, {}),
    ({"learning_rate": 3e-4, "weight_decay": 0.1}, {"lr": 3e-4, "weight_decay": 0.1}),
    ({"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}, {}),  # Adam's defaults: not set
    ({"adam_beta1": 0.8}, {"betas": (0.8, 0.9999)}),
    ({"adam_beta2": 0.99}, {"betas": (0.9, 0.99)}),
    ({"adam_epsilon": 1e-5}, {"eps": 1e-5}),
    ({"optim_args": "beta2=0.999, eps=1e-8"}, {"betas": (0.9, 0.999), "eps": 1e-8}),
    ({"adam_beta2": 0.99, "optim_args": "beta2=0.999"}, {"betas": (0.9, 0.999)}),
    ({"adam_beta1": 0.7, "adam_beta2": 0.99, "optim_args": "betas=(0.8, 0.95)"}, {"betas": (0.8, 0.95)}),
    ({"adam_beta2": 0.99, "optim_args": "beta1=0.8"}, {"betas": (0.8, 0.99)}),
    ({"optim_args": "lr=0.5"}, {"lr": 0.5}),
    ({"optim_args": "weight_decay=0.2"}, {"weight_decay": 0.2}),
    ({"weight_decay": 0.1, "optim_args": "weight_decay=0.2,lr=0.5,"}, {"weight_decay": 0.2, "lr": 0.5}),
    ({"weight_decay": 0.1, "optim_args": "weight_decay=0"}, {"weight_decay": 0.0}),
    ({"weight_decay": 0.1, "optim_args": "decouple=False"}, {"weight_decay": 0.1, "decouple": False}),
    ({"optim_args": "clip_exp=none, beta2_warmup=true"}, {"clip_exp": None}),
    ({"optim_args": "beta2_warmup=false"}, {"beta2_warmup": False}),  # the paper's rule
    ({"optim_args": "beta2_warmup=0.5"}, {"beta2_warmup": 0.5}),
    ({"optim_args": "beta2_warmup=1"}, {"beta2_warmup": 1.0}),  # the running mean
    ({"optim_args": "maximize=yes, backend=reference"}, {"maximize": True, "backend": "reference"}),
]

BAD: list[tuple[dict[str, Any], list[str]]] = [  # fields of TrainingArguments -> what the message must contain
    ({"optim_args": "beta3=0.9"}, ["optim_args", "'beta3'", "allowed keys"]),
    ({"optim_args": "beta2"}, ["optim_args", "'beta2'", "key=value"]),
    ({"optim_args": "decouple=maybe"}, ["optim_args", "decouple", "'maybe'", "True or False"]),
    ({"optim_args": "beta2=1.5"}, ["optim_args", "beta2", "1.5", "[0, 1)"]),
    ({"optim_args": "betas=(0.9,0.99),beta2=0.9"}, ["optim_args", "beta2", "twice"]),
    ({"optim_args": "backend=cuda"}, ["optim_args", "backend", "'cuda'", "'foreach'"]),
    ({"adam_beta2": 1.5}, ["beta2", "1.5", "[0, 1)"]),
    ({"adam_epsilon": -1.0}, ["eps", "-1.0", ">= 0"]),
    ({"learning_rate": -1.0}, ["lr", "-1.0", ">= 0"]),
    ({"weight_decay": -0.1}, ["weight_decay", "-0.1", ">= 0"]),
]


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


@pytest.mark.parametrize(("fields", "changed"), HYPERPARAMETERS, ids=lambda x: str(x) if x else "defaults")
def test_hyperparameters_reach_the_groups(
    fields: dict[str, Any], changed: dict[str, Any], arguments: Any, make_trainer: Any
) -> None:
    optimizer = make_trainer(arguments(**fields)).create_optimizer()
    assert type(optimizer) is ADOPTW
    decayed, undecayed = optimizer.param_groups
    expected = DEFAULTS | changed
    for name, value in expected.items():
        assert (name, decayed[name]) == (name, value)
        assert (name, undecayed[name]) == (name, 0.0 if name == "weight_decay" else value)
    assert set(expected) == set(decayed) - {"params"}, "a hyperparameter is not in the table"


@pytest.mark.parametrize("optim_args", [None, "weight_decay=0.1"])
def test_groups_are_the_trainers(optim_args: str | None, arguments: Any, make_trainer: Any) -> None:
    """The same parameters in the same order as AdamW gets, also where `optim_args` brings the weight decay."""
    adamw = make_trainer(arguments(optim="adamw_torch", weight_decay=0.1))
    field = {} if optim_args else {"weight_decay": 0.1}
    adopt = make_trainer(arguments(optim_args=optim_args, **field))
    theirs, ours = adamw.create_optimizer().param_groups, adopt.create_optimizer().param_groups

    def names(trainer: Trainer, groups: list[dict[str, Any]]) -> list[list[str]]:
        by_id = {id(p): name for name, p in trainer.model.named_parameters()}
        return [[by_id[id(p)] for p in group["params"]] for group in groups]

    assert names(adopt, ours) == names(adamw, theirs)
    assert [g["weight_decay"] for g in ours] == [g["weight_decay"] for g in theirs] == [0.1, 0.0]
    assert all(group["params"] for group in ours)
    assert adopt.args.weight_decay == field.get("weight_decay", 0.0), "the arguments were changed"


def test_a_run_uses_them(arguments: Any, make_trainer: Any) -> None:
    """After real steps: state, schedule and weights are those of an ADOPT with the numbers of `optim_args`."""
    trainer = make_trainer(arguments(optim_args="lr=0.004, weight_decay=0.5", lr_scheduler_type="linear", max_steps=4))
    before = weights(trainer)
    trainer.train()
    optimizer = optimizer_of(trainer)
    assert type(optimizer) is ADOPTW
    assert {float(state["step"]) for state in optimizer.state.values()} == {4.0}
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.004}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert trainer.state.log_history[-1]["step"] == 4
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))


def test_equals_a_loop_by_hand(arguments: Any, make_trainer: Any, tiny_gpt2: Any) -> None:
    """Five steps over the whole data set, gradients clipped by norm: the Trainer adds nothing to ADOPT."""
    fields = {
        "weight_decay": 0.1,
        "optim_args": "eps=1e-3",  # so that gradients of pure rounding noise (the bias of the keys) stay that small
        "per_device_train_batch_size": 16,
        "max_steps": 5,
        "lr_scheduler_type": "constant",
    }
    config = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    trainer = make_trainer(arguments(**fields), model=tiny_gpt2(**config))
    trainer.train()

    model = tiny_gpt2(**config).train()
    optimizer = ADOPTW(adopt_hf.param_groups(model, 0.1), lr=1e-2, eps=1e-3)
    tokens = torch.stack([row["input_ids"] for row in trainer.train_dataset])
    for _ in range(5):
        # The Trainer's mean loss counts every label, the first ones too, which nothing predicts.
        model(input_ids=tokens, labels=tokens, num_items_in_batch=tokens.numel()).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    for (name, by_hand), by_trainer in zip(model.named_parameters(), weights(trainer), strict=True):
        # Not bit for bit: the batches are shuffled. One more step, or another rule of decay, is 1e-4 and more.
        torch.testing.assert_close(by_trainer, by_hand.detach(), atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def test_one_info_line(arguments: Any, make_trainer: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="adopt_hf"):
        make_trainer(arguments(adam_beta2=0.99, weight_decay=0.1, optim_args="clip_exp=none")).train()
    (record,) = [record for record in caplog.records if record.name == "adopt_hf"]
    line = record.getMessage()
    assert record.levelno == logging.INFO
    assert len(line.splitlines()) == 1
    numbers = DEFAULTS | {"betas": (0.9, 0.99), "weight_decay": 0.1, "clip_exp": None}
    assert [name for name, value in numbers.items() if f"{name}={value}" not in line] == []


@pytest.mark.parametrize(
    "fields", [{"weight_decay": 0.1}, {"optim_args": "weight_decay=0.2, betas=(0.8, 0.95)", "adam_epsilon": 1e-5}]
)
@pytest.mark.usefixtures("registered")
def test_trainer_kwargs_without_the_name(fields: dict[str, Any], arguments: Any, make_trainer: Any) -> None:
    """The public route, with every patch taken off, trains the same weights as the name."""
    named = make_trainer(arguments(**fields))
    named.train()

    adopt_hf.unregister()
    with pytest.raises(ValueError, match="adopt"):
        arguments()
    args = arguments(optim="adamw_torch", **fields)
    public = make_trainer(args, optimizer_cls_and_kwargs=adopt_hf.trainer_kwargs(args))
    public.train()
    adamw = make_trainer(arguments(optim="adamw_torch", weight_decay=0.1))
    adamw.train()

    assert type(optimizer_of(public)) is ADOPTW
    assert equal(weights(named), weights(public))
    assert equal(optimizer_of(named).state_dict(), optimizer_of(public).state_dict())
    assert not equal(weights(adamw), weights(public)), "the comparison sees no difference between optimizers"


# -- the arguments, written and read -----------------------------------------------------------------------------------


def _from_command_line(args: TrainingArguments, folder: Path) -> Any:
    line = ["--output_dir", args.output_dir, "--use_cpu", "--optim", "adopt", "--optim_args", str(args.optim_args)]
    return HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line)[0]


def _plain(args: TrainingArguments) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("output_dir", "use_cpu", "optim_args")} | {"optim": "adopt"}


def _from_json_file(args: TrainingArguments, folder: Path) -> Any:
    (folder / "args.json").write_text(json.dumps(_plain(args)))
    return HfArgumentParser(TrainingArguments).parse_json_file(str(folder / "args.json"))[0]


def _from_yaml_file(args: TrainingArguments, folder: Path) -> Any:
    (folder / "args.yaml").write_text(yaml.safe_dump(_plain(args)))
    return HfArgumentParser(TrainingArguments).parse_yaml_file(str(folder / "args.yaml"))[0]


def _through_their_json(args: TrainingArguments, folder: Path) -> Any:
    written = json.loads(args.to_json_string())
    assert written["optim"] == "adopt"
    return TrainingArguments(**{name: written[name] for name in _plain(args)})


def _through_torch_save(args: TrainingArguments, folder: Path) -> Any:
    torch.save(args, folder / "training_args.bin")
    return torch.load(folder / "training_args.bin", weights_only=False)


def _through_set_optimizer(args: TrainingArguments, folder: Path) -> Any:
    changed = copy.deepcopy(args)
    changed.optim = OptimizerNames.SGD
    return changed.set_optimizer("adopt", learning_rate=1e-3, args=args.optim_args)


ROUTES: dict[str, Callable[[TrainingArguments, Path], Any]] = {
    "command line": _from_command_line,
    "dict": lambda args, _: HfArgumentParser(TrainingArguments).parse_dict(_plain(args))[0],
    "JSON file": _from_json_file,
    "YAML file": _from_yaml_file,
    "to_json_string": _through_their_json,
    "to_dict": lambda args, _: TrainingArguments(**{k: v for k, v in args.to_dict().items() if k in _plain(args)}),
    "set_optimizer": _through_set_optimizer,
    "deepcopy": lambda args, _: copy.deepcopy(args),
    "copy": lambda args, _: copy.copy(args),
    **{f"pickle {n}": lambda args, _, n=n: pickle.loads(pickle.dumps(args, n)) for n in range(2, 6)},
    "torch.save": _through_torch_save,
}


@pytest.mark.parametrize("route", ROUTES)
def test_arguments_survive(route: str, arguments: Any, make_trainer: Any, tmp_path: Path) -> None:
    read = ROUTES[route](arguments(optim_args="beta2=0.99"), tmp_path)
    assert read.optim is OptimizerNames("adopt")
    assert read.optim == "adopt"
    optimizer = make_trainer(read).create_optimizer()
    assert type(optimizer) is ADOPTW
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_other_members_survive() -> None:
    for member in OptimizerNames:
        assert OptimizerNames(member.value) is member
        assert pickle.loads(pickle.dumps(member)) is member
        assert copy.deepcopy(member) is member


FRESH = """
import sys
from transformers import Trainer, TrainingArguments                 # before adopt_hf: the order must not matter
from transformers.training_args import OptimizerNames
from accelerate.optimizer import AcceleratedOptimizer
import copyreg, torch

def patched():
    return dict(names=list(OptimizerNames), members=dict(OptimizerNames.__members__), dir=sorted(dir(OptimizerNames)),
                values=dict(OptimizerNames._value2member_map_), order=list(OptimizerNames._member_names_),
                attributes={name: id(value) for name, value in vars(OptimizerNames).items()},
                method=id(vars(Trainer)["get_optimizer_cls_and_kwargs"]),
                load=id(vars(Trainer)["_load_from_checkpoint"]), best=id(vars(Trainer)["_load_best_model"]),
                copyreg=dict(copyreg.dispatch_table),
                torch=id(vars(torch.optim.Optimizer)["load_state_dict"]),
                prepared=id(vars(AcceleratedOptimizer)["load_state_dict"]))

assert "adopt_hf" not in sys.modules
untouched = patched()
args = torch.load(sys.argv[1], weights_only=False)                  # the file alone brings the import along
assert "adopt_hf" in sys.modules
import adopt_hf
assert args.optim is OptimizerNames("adopt"), args.optim
assert Trainer.get_optimizer_cls_and_kwargs(args)[0] is adopt_hf.ADOPTW
once = patched()
assert [name for name in untouched if untouched[name] == once[name]] == [], "the comparison sees no difference"
adopt_hf.register()
assert patched() == once                                            # idempotent
adopt_hf.unregister()
for name, value in patched().items():
    assert value == untouched[name], name                           # complete, after however many register()
adopt_hf.unregister()
assert patched() == untouched
try:
    TrainingArguments("x", optim="adopt")
    raise AssertionError("still registered")
except ValueError:
    pass
adopt_hf.register()
assert TrainingArguments("x", optim="adopt", use_cpu=True).optim == "adopt"
print("fine")
"""


def test_fresh_interpreter_reads_training_args(arguments: Any, tmp_path: Path) -> None:
    """... and there, with transformers as it came, `register()` and `unregister()` are compared before and after."""
    torch.save(arguments(), tmp_path / "training_args.bin")
    said = python("-c", FRESH, tmp_path / "training_args.bin", cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert said == "fine\n"


def test_three_lines(tmp_path: Path) -> None:
    lines = 'import adopt_hf\nfrom transformers import TrainingArguments\nprint(TrainingArguments(optim="adopt").optim)'
    assert python("-c", lines, cwd=tmp_path, modules=BEFORE_TRANSFORMERS).strip() in ("adopt", "OptimizerNames.ADOPT")


# -- others, and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cls"), [("adamw_torch", "AdamW"), ("sgd", "SGD"), ("adafactor", "Adafactor"), ("rmsprop", "RMSprop")]
)
def test_other_optimizers_do_not_notice(name: str, cls: str, arguments: Any, make_trainer: Any) -> None:
    optimizer = make_trainer(arguments(optim=name)).create_optimizer()
    assert type(optimizer).__name__ == cls


def test_an_unknown_name_fails_as_before(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"adoptt is not a valid OptimizerNames.*'adopt'"):
        arguments(optim="adoptt")


class Steps(TrainerCallback):
    count = 0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.count += 1


@pytest.mark.parametrize(("fields", "words"), BAD, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_bad_input_ends_before_the_first_step(
    fields: dict[str, Any], words: list[str], arguments: Any, make_trainer: Any
) -> None:
    steps = Steps()
    trainer = make_trainer(arguments(**fields), callbacks=[steps])
    with pytest.raises(ValueError, match=r"\A.+\Z") as error:
        trainer.train()
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert [word for word in words if word not in message] == []
    assert steps.count == 0


def test_a_backend_that_cannot_run_is_an_error(
    arguments: Any, make_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a quiet fall-back; the message says what can run. Here as if there were no compiler."""
    nothing = backends.CPU._replace(why_not=lambda device, dtype: "no C compiler is there")
    monkeypatch.setitem(backends.TABLE, "fused", (nothing,))
    steps = Steps()
    trainer = make_trainer(arguments(optim_args="backend=fused"), callbacks=[steps])
    others = ", ".join(repr(name) for name in backends.TABLE if name != "fused")
    with pytest.raises(RuntimeError, match=rf"\Abackend='fused' cannot run on cpu .*compiler.* here: {others}\Z"):
        trainer.train()
    assert steps.count == 0


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_uninterrupted(tmp_path: Path) -> None:
    script = SCRIPTS / "resume.py"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    python(script, whole, "full", cwd=tmp_path)
    killed = run(script, parts, "killed", cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [folder.name for folder in parts.iterdir()] == ["checkpoint-20"]
    python(script, parts, "resumed", cwd=tmp_path)

    def checkpoint(folder: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        return {
            "model": load_file(folder / "model.safetensors"),
            "optimizer": torch.load(folder / "optimizer.pt", weights_only=True),
            "scheduler": torch.load(folder / "scheduler.pt", weights_only=True),
        }

    half, end = checkpoint(whole / "checkpoint-20"), checkpoint(whole / "checkpoint-40")
    assert {float(state["step"]) for state in end["optimizer"]["state"].values()} == {40.0}
    assert end["optimizer"]["param_groups"][0]["clip_exp"] == 0.25, "not ADOPT's"
    assert not equal(half, end)
    assert equal(half, checkpoint(parts / "checkpoint-20"))
    assert equal(end, checkpoint(parts / "checkpoint-40"))
