"""Adam's fields of TrainingArguments: a number that a user set on purpose trains, also where it is Adam's default.

- a trial of `hyperparameter_search` sets what it says, and leaves nothing behind for the next one;
- so do an assignment and `set_optimizer`, through copies and pickles;
- what cannot be told apart, a default that was written in a call or on a command line, is one warning a process;
- a run in which nothing was written says nothing.
"""

import copy
import dataclasses
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.trainer_utils import HPSearchBackend

import adopt_hf
from adopt_hf.integrations.accelerate import _fill
from adopt_hf.integrations.deepspeed import ds_config
from adopt_hf.integrations.transformers import fields
from tests.integrations.conftest import make_model

OWN = {"beta1": 0.9, "beta2": 0.9999, "eps": 1e-6}


def numbers(optimizer: Any) -> dict[str, float]:
    group = optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    return {"beta1": beta1, "beta2": beta2, **{name: group[name] for name in ("eps", "lr", "weight_decay", "clip_exp")}}


class Searched(Trainer):
    """A Trainer that keeps the numbers of every optimizer that it makes."""

    def create_optimizer(self, model: Any = None) -> Any:
        self.seen = [*getattr(self, "seen", []), numbers(super().create_optimizer())]
        return self.optimizer


FIELDS = {**fields.ADAM, "lr": "learning_rate", "weight_decay": "weight_decay"}
TRIALS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # what a trial sets -> what its optim_args say
    ({"adam_beta2": 0.999}, {}),
    ({"adam_beta2": 0.9}, {}),
    ({"adam_beta2": 0.999, "adam_epsilon": 1e-8}, {}),
    ({"adam_beta1": 0.9, "adam_epsilon": 1e-7}, {}),
    ({"adam_beta2": 0.999, "optim_args": "beta2=0.95"}, {"beta2": 0.95}),
    ({"learning_rate": 0.5, "weight_decay": 0.1}, {}),
    ({"optim_args": "weight_decay=0.3, lr=0.25"}, {"weight_decay": 0.3, "lr": 0.25}),
    ({"optim_args": "clip_exp=none"}, {"clip_exp": None}),
]


@pytest.mark.slow
def test_a_trial_trains_with_what_it_sets(arguments: Any, make_trainer: Any) -> None:
    """Each trial is followed by one that sets `optim_args` to None. transformers keeps the fields that a trial set."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trials = [trial for pair in TRIALS for trial in (pair, ({"optim_args": None}, {}))]
    args = arguments(max_steps=1, lr_scheduler_type="constant")
    data = make_trainer(args).train_dataset
    trainer = Searched(model_init=lambda: make_model(), args=args, train_dataset=data, eval_dataset=data)
    trainer.hyperparameter_search(
        hp_space=lambda trial: trials[trial.number][0], n_trials=len(trials), direction="minimize", backend="optuna"
    )
    expected: dict[str, Any] = {**OWN, "lr": 1e-2, "weight_decay": 0.0, "clip_exp": 0.25}
    assert len(trainer.seen) == len(trials)
    for (trial, of_optim_args), seen in zip(trials, trainer.seen, strict=True):
        expected |= {name: trial[field] for name, field in FIELDS.items() if field in trial}
        assert seen == expected | of_optim_args, trial


@pytest.mark.parametrize("backend", [HPSearchBackend.WANDB, HPSearchBackend.RAY])
def test_trials_of_other_backends(backend: HPSearchBackend, arguments: Any, make_trainer: Any) -> None:
    trainer = make_trainer(arguments())
    trainer.hp_search_backend = backend
    trainer._hp_search_setup({"adam_beta2": 0.999, "adam_epsilon": 1e-8})
    seen = numbers(trainer.create_optimizer())
    assert (seen["beta1"], seen["beta2"], seen["eps"]) == (0.9, 0.999, 1e-8)


# -- assignments, and set_optimizer ------------------------------------------------------------------------------------


def _assigned(args: TrainingArguments) -> None:
    args.adam_beta2, args.adam_epsilon = 0.999, 1e-8


def _set_by_name(args: TrainingArguments) -> None:
    args.set_optimizer("adopt", learning_rate=1e-2, beta2=0.999, epsilon=1e-8)


def _set_by_place(args: TrainingArguments) -> None:
    args.set_optimizer("adopt", 1e-2, 0.0, 0.9, 0.999, 1e-8)


SET: list[Callable[[TrainingArguments], None]] = [_assigned, _set_by_name, _set_by_place]
KEPT: dict[str, Callable[[TrainingArguments], TrainingArguments]] = {
    "itself": lambda args: args,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda args: pickle.loads(pickle.dumps(args)),
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("set_", SET, ids=lambda f: f.__name__)
def test_a_default_that_was_set_is_used(set_: Any, kept: str, arguments: Any, caplog: Any) -> None:
    args = arguments()
    set_(args)
    with caplog.at_level(logging.WARNING, "adopt_hf"):
        _, kwargs = adopt_hf.trainer_kwargs(KEPT[kept](args))
    assert (kwargs["betas"], kwargs["eps"]) == ((0.9, 0.999), 1e-8)
    assert not [record for record in caplog.records if record.name == "adopt_hf"]


def test_set_optimizer_without_numbers_sets_none(arguments: Any, caplog: Any) -> None:
    args = arguments()
    _assigned(args)
    args.set_optimizer("adopt", learning_rate=1e-2)  # it resets all fields of the optimizer
    _, kwargs = adopt_hf.trainer_kwargs(args)
    assert (kwargs["betas"], kwargs["eps"]) == ((0.9, 0.9999), 1e-6)


def test_the_default_of_a_subclass_is_none_that_was_set(tmp_path: Path) -> None:
    """ms-swift's arguments, whose adam_beta2 is 0.95 if nothing is set. 0.999 then counts as set."""

    @dataclasses.dataclass
    class Arguments(TrainingArguments):
        adam_beta2: float = 0.95

    for given, used in (({}, 0.9999), ({"adam_beta2": 0.999}, 0.999)):
        args = Arguments(str(tmp_path), optim="adopt", use_cpu=True, report_to="none", **given)
        assert adopt_hf.trainer_kwargs(args)[1]["betas"] == (0.9, used)


def test_the_arguments_are_written_as_before(arguments: Any) -> None:
    plain, set_ = arguments(), arguments()
    _assigned(set_)
    assert set_ == plain
    assert set_.to_dict() == plain.to_dict()
    assert set_.to_json_string() == plain.to_json_string()


# -- what cannot be told apart -----------------------------------------------------------------------------------------


def _parsed(folder: Path, *line: str) -> TrainingArguments:
    parser = HfArgumentParser(TrainingArguments)
    return parser.parse_args_into_dataclasses(
        ["--output_dir", str(folder), "--optim", "adopt", "--use_cpu", *line], look_for_args_file=False
    )[0]


def _from_json(folder: Path, **fields: Any) -> TrainingArguments:
    (folder / "args.json").write_text(
        json.dumps({"output_dir": str(folder), "optim": "adopt", "use_cpu": True, **fields})
    )
    return HfArgumentParser(TrainingArguments).parse_json_file(str(folder / "args.json"))[0]


WRITTEN: dict[str, Callable[[Path, Any], TrainingArguments]] = {
    "a call": lambda folder, arguments: arguments(adam_beta2=float("0.999"), adam_epsilon=float("1e-8")),
    "a command line": lambda folder, arguments: _parsed(folder, "--adam_beta2", "0.999", "--adam_epsilon=1e-8"),
    "a file": lambda folder, arguments: _from_json(folder, adam_beta2=0.999, adam_epsilon=1e-8),
}
QUIET: dict[str, Callable[[Path, Any], TrainingArguments]] = {
    "a call": lambda folder, arguments: arguments(),
    "a command line": lambda folder, arguments: _parsed(folder),
    "a file": lambda folder, arguments: _from_json(folder),
    "another number": lambda folder, arguments: arguments(adam_beta2=0.99, adam_epsilon=1e-7),
    "the number that ADOPT has": lambda folder, arguments: arguments(adam_beta1=float("0.9")),
    "optim_args": lambda folder, arguments: arguments(
        adam_beta2=float("0.999"), adam_epsilon=float("1e-8"), optim_args="beta2=0.999, eps=1e-8"
    ),
    "to_dict": lambda folder, arguments: TrainingArguments(**arguments().to_dict()),
}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(fields, "_warned", False)
    caplog.set_level(logging.WARNING, "adopt_hf")
    return caplog


@pytest.mark.parametrize("way", WRITTEN)
def test_one_warning_where_a_written_default_is_replaced(
    way: str, arguments: Any, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        _, kwargs = adopt_hf.trainer_kwargs(WRITTEN[way](tmp_path, arguments))
        assert (kwargs["betas"], kwargs["eps"]) == ((0.9, 0.9999), 1e-6)
    (record,) = warnings.records
    assert record.getMessage() == (
        "TrainingArguments were given adam_beta2=0.999 and adam_epsilon=1e-08, Adam's default, which they hold as well "
        "if nothing is set. ADOPT therefore trains with its own beta2=0.9999 and eps=1e-06. To train with the given "
        'numbers write optim_args="beta2=0.999, eps=1e-08"'
    )


def test_what_the_warning_says_to_write_works(arguments: Any, warnings: pytest.LogCaptureFixture) -> None:
    adopt_hf.trainer_kwargs(arguments(adam_epsilon=float("1e-8")))
    text = warnings.records[0].getMessage().split('optim_args="')[1].rstrip('"')
    _, kwargs = adopt_hf.trainer_kwargs(arguments(adam_epsilon=float("1e-8"), optim_args=text))
    assert kwargs["eps"] == 1e-8


@pytest.mark.parametrize("way", QUIET)
def test_no_warning_where_nothing_is_replaced(
    way: str, arguments: Any, tmp_path: Path, warnings: pytest.LogCaptureFixture
) -> None:
    adopt_hf.trainer_kwargs(QUIET[way](tmp_path, arguments))
    assert not warnings.records


# -- DeepSpeed's block under Accelerate --------------------------------------------------------------------------------


def test_a_dummy_optim_says_it_too() -> None:
    """Accelerate takes `lr` and `weight_decay` out of it and drops the rest."""
    block = {"type": "ADOPT", "params": {"lr": "auto", "betas": "auto", "clip_exp": 0.5}}
    _fill(block, {"betas": (0.9, 0.999), "eps": 1e-8, "clip_exp": 0.5})
    assert block["params"] == {"lr": "auto", "betas": (0.9, 0.999), "clip_exp": 0.5, "eps": 1e-8}
    assert ds_config.block_kwargs({"optimizer": block}, auto_is_filled=True)["betas"] == (0.9, 0.999)
    with pytest.raises(ValueError, match=r"DummyOptim was given eps=1e-06, and optimizer.params .* has 1e-08: write"):
        _fill(block, {"eps": 1e-6})
