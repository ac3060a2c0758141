"""What `import adopt_hf` does where transformers does not fit: everything but the name works, and the name says why."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from adopt_hf.integrations import compat

STEP = """
def adopt_works():
    import torch
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = adopt_hf.ADOPT(adopt_hf.param_groups(model, 0.1), lr=0.1)
    for _ in range(2):
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    assert not any(map(torch.equal, before, model.parameters()))

def refused(call, words):
    try:
        call()
    except ImportError as error:
        assert len(str(error).splitlines()) == 1, error
        assert [word for word in words if word not in str(error)] == [], error
    else:
        raise AssertionError("no error")
"""

UNFIT = """
import sys
words = sys.argv[1:]
import adopt_hf
from transformers import HfArgumentParser, TrainingArguments
from transformers.training_args import OptimizerNames

adopt_works()
refused(adopt_hf.register, words)
refused(lambda: TrainingArguments("x", optim="adopt"), words)
refused(lambda: TrainingArguments("x", use_cpu=True).set_optimizer("adopt"), words)
assert TrainingArguments("x", optim="sgd", use_cpu=True).optim is OptimizerNames.SGD
try:
    TrainingArguments("x", optim="adoptt")
except ImportError as error:
    raise AssertionError(error)
except ValueError as error:
    assert "adoptt is not a valid OptimizerNames" in str(error), error
line = ["--output_dir", "x", "--use_cpu", "--optim"]
assert HfArgumentParser(TrainingArguments).parse_args_into_dataclasses([*line, "sgd"])[0].optim == "sgd"
args = TrainingArguments("x", use_cpu=True)
assert adopt_hf.trainer_kwargs(args)[0] is adopt_hf.ADOPT           # the route that needs no name
print("all but the parser")
refused(lambda: HfArgumentParser(TrainingArguments).parse_args_into_dataclasses([*line, "adopt"]), words)
print("the parser")
"""

OLDER = """
import importlib.metadata
import transformers
version = importlib.metadata.version
importlib.metadata.version = lambda name: "4.57.1" if name == "transformers" else version(name)
"""

CHANGED = """
from transformers import Trainer
theirs = Trainer.get_optimizer_cls_and_kwargs
Trainer.get_optimizer_cls_and_kwargs = staticmethod(lambda args, model=None, context=None: theirs(args, model))
"""

MISSING = """
import sys
import adopt_hf
adopt_works()
assert "transformers" not in sys.modules
try:
    import transformers
    raise AssertionError("transformers is there")
except ModuleNotFoundError:
    pass
refused(adopt_hf.register, ["transformers", "install"])
print("fine")
"""


@pytest.mark.parametrize(
    ("simulated", "words"),
    [
        (OLDER, ["5.2", "4.57.1"]),
        (CHANGED, ["get_optimizer_cls_and_kwargs", importlib.metadata.version("transformers")]),
    ],
    ids=["older", "changed"],
)
def test_an_unfit_transformers(simulated: str, words: list[str], start: Any, tmp_path: Path) -> None:
    done = start("-c", simulated + STEP + UNFIT, *words, cwd=tmp_path).result()
    assert "all but the parser" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
    assert "\nthe parser" in done.stdout


def test_without_transformers(python: Any, no_transformers: dict[str, str], tmp_path: Path) -> None:
    assert python("-c", STEP + MISSING, cwd=tmp_path, env=no_transformers) == "fine\n"


@pytest.mark.parametrize(
    ("version", "fits"), [("4.57.6", False), ("5.1.9", False), ("5.2.0", True), ("5.10.1", True), ("6.0.0.dev0", True)]
)
def test_which_versions_fit(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule alone; what it asks of the code is there in the installed one."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    reason = compat.transformers_mismatch()
    assert (reason is None) == fits, reason
    if reason is not None:
        assert version in reason
        assert "5.2" in reason


def test_a_changed_way_to_load_checkpoints_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_load_from_checkpoint", lambda self, model, folder: None)
    reason = compat.transformers_mismatch()
    assert reason is not None
    assert "has changed Trainer._load_from_checkpoint: adopt_hf must be updated" in reason
