"""The name "adopt" in a transformers that has it itself, or lets adopt_hf register it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.forks import BEFORE_TRANSFORMERS
from tests.support.overlay import in_changed
from tests.support.processes import run

pytestmark = pytest.mark.slow
PROPOSALS = ("transformers-adopt", "transformers-register-optimizer")


TOOK = """
import logging, pickle, sys
IMPORTS
from transformers.training_args import OptimizerNames
import torch

def optimizer_of(args):
    return Trainer(torch.nn.Linear(2, 1), args).create_optimizer()

made = TrainingArguments("x", optim="adopt", optim_args="betas=(0.8,0.99), clip_exp=0.3,", use_cpu=True)
line = ["--output_dir", "x", "--use_cpu", "--optim", "adopt"]
parsed, = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(line)
reset = TrainingArguments("x", use_cpu=True).set_optimizer("adopt")
for args in (made, parsed, pickle.loads(pickle.dumps(made)), reset):
    assert args.optim == "adopt", args.optim
    assert type(optimizer_of(args)) is adopt_hf.ADOPTW
assert optimizer_of(made).param_groups[0]["betas"] == (0.8, 0.99)
eight = TrainingArguments("x", optim="adopt_8bit", use_cpu=True)
assert optimizer_of(eight).param_groups[0]["state_bits"] == 8
layerwise = TrainingArguments("x", optim="adopt_layerwise", use_cpu=True)
assert Trainer.get_optimizer_cls_and_kwargs(layerwise)[0] is adopt_hf.LayerwiseADOPTW
try:
    optimizer_of(TrainingArguments("x", optim="adopt", optim_args="beta3=1", use_cpu=True))
    raise AssertionError("taken")
except ValueError as error:
    assert "beta3" in str(error), error
assert type(optimizer_of(TrainingArguments("x", optim="sgd", use_cpu=True))) is torch.optim.SGD
adopt_hf.register()
"""
FIRST = "import adopt_hf\nfrom transformers import HfArgumentParser, Trainer, TrainingArguments"
LAST = "from transformers import HfArgumentParser, Trainer, TrainingArguments\nimport adopt_hf"

BUILT_IN = """
assert [name.value for name in OptimizerNames].count("adopt") == 1
assert not hasattr(OptimizerNames("adopt"), "_adopt_hf_added")
adopt_hf.unregister()
assert [name.value for name in OptimizerNames if "adopt" in name.value] == ["adopt"]
assert type(optimizer_of(TrainingArguments("x", optim="adopt", use_cpu=True))) is adopt_hf.ADOPTW
assert pickle.loads(pickle.dumps(made)).optim is OptimizerNames.ADOPT
print("fine")
"""

REGISTERED = """
from transformers.training_args import REGISTERED_OPTIMIZERS
assert sorted(REGISTERED_OPTIMIZERS) == ["adopt", "adopt_8bit", "adopt_layerwise"]
assert "adopt" not in [name.value for name in OptimizerNames]
assert not hasattr(Trainer.get_optimizer_cls_and_kwargs, "_adopt_hf_wraps")
from adopt_hf.commands import env
line, = [line for line in env.report().splitlines() if "Trainer.get_optimizer_cls_and_kwargs" in line]
assert line.endswith("not replaced (this version does not need it)"), line
from adopt_hf.integrations.transformers import names
assert names._optimizer_name("adopt") == "adopt"     # what training_args.bin of an earlier transformers calls
adopt_hf.unregister()
assert not REGISTERED_OPTIMIZERS
adopt_hf.register()
assert sorted(REGISTERED_OPTIMIZERS) == ["adopt", "adopt_8bit", "adopt_layerwise"]
print("fine")
"""


@pytest.mark.parametrize("imports", [FIRST, LAST], ids=["adopt_hf first", "adopt_hf last"])
@pytest.mark.parametrize(("name", "more"), list(zip(PROPOSALS, (BUILT_IN, REGISTERED), strict=True)), ids=PROPOSALS)
def test_the_name_builds_our_adopt(
    name: str, more: str, imports: str, changed: Callable[[str], str], tmp_path: Path
) -> None:
    code = TOOK.replace("IMPORTS", imports) + more
    done = run(*in_changed(changed(name), code), cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert done.stdout.endswith("fine\n"), done.stderr
    assert "transformers has optim=" not in done.stderr
    assert "adopt_hf" not in done.stderr


UNFIT = """
import adopt_hf
from transformers import Trainer, TrainingArguments
theirs = Trainer._load_best_model
del Trainer._load_best_model
adopt_hf.unregister()
for use in (adopt_hf.register, lambda: TrainingArguments("x", optim="adopt", use_cpu=True)):
    try:
        use()
        raise AssertionError("taken")
    except ImportError as error:
        assert "has changed transformers.trainer.Trainer._load_best_model" in str(error), error
    from adopt_hf.integrations import register_on_import
    register_on_import()
TrainingArguments("x", optim="sgd", use_cpu=True)
print("fine")
"""


@pytest.mark.parametrize("name", PROPOSALS[1:])
def test_a_trainer_that_does_not_fit_is_still_refused(name: str, changed: Callable[[str], str], tmp_path: Path) -> None:
    done = run(*in_changed(changed(name), UNFIT), cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert done.stdout.endswith("fine\n"), done.stderr
