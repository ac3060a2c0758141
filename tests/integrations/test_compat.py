"""`import adopt_hf` where transformers does not fit: everything but the name works, and the name says why."""

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, trainer_optimizer
from transformers.training_args import OptimizerNames

import adopt_hf
from adopt_hf.integrations.transformers import names, patches
from tests.support.forks import BEFORE_TRANSFORMERS
from tests.support.processes import WITHOUT_TRANSFORMERS, python, run

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
assert adopt_hf.trainer_kwargs(args)[0] is adopt_hf.ADOPTW          # the route that needs no name
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

BROKEN = """
import importlib.abc, sys
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.trainer_optimizer":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
"""

# The same where adopt_hf is imported first, and each module of transformers is changed before adopt_hf sees it.
CHANGE = """
import importlib.abc, sys
from importlib.machinery import PathFinder
class Change(importlib.abc.MetaPathFinder):
    def __init__(self, name, change):
        self.name, self.change = name, change
        sys.meta_path.insert(sys.meta_path.index(PathFinder), self)

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            spec = PathFinder.find_spec(name, path, target)
            execute = spec.loader.exec_module
            def exec_module(module):
                execute(module)
                self.change(module)
            spec.loader.exec_module = exec_module
            return spec
"""

CHANGED_LATER = """
def change(module):
    trainer, theirs = module.Trainer, module.Trainer.get_optimizer_cls_and_kwargs
    trainer.get_optimizer_cls_and_kwargs = staticmethod(lambda args, model=None, context=None: theirs(args, model))
Change("transformers.trainer", change)
"""

BY_THE_NAME = """
import adopt_hf
from transformers import TrainingArguments
assert "transformers.trainer" not in sys.modules
for _ in range(2):                                                    # the first imports the Trainer
    refused(lambda: TrainingArguments("x", optim="adopt", use_cpu=True), words)
"""

# Of an older process, say: no check has asked whether the Trainer fits.
OLDER_ARGUMENTS = """
import adopt_hf
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames
args = TrainingArguments("x", optim="sgd", use_cpu=True)
vars(args)["optim"] = OptimizerNames("adopt")
assert "transformers.trainer" not in sys.modules
from transformers import Trainer
refused(lambda: Trainer.get_optimizer_cls_and_kwargs(args), words)
Trainer.get_optimizer_cls_and_kwargs(TrainingArguments("x", optim="sgd", use_cpu=True))
adopt_hf.unregister()
assert not hasattr(Trainer.get_optimizer_cls_and_kwargs, "_adopt_hf_wraps")
assert "ADOPT" not in OptimizerNames.__members__
assert not [finder for finder in sys.meta_path if hasattr(finder, "adopt_hf_waits_for")]
"""

CHANGED_DEEPSPEED = """
def change(module):
    del module.deepspeed_optim_sched
Change("transformers.integrations.deepspeed", change)
import transformers
import adopt_hf
import transformers.integrations.deepspeed                            # before there are names
assert "transformers.training_args" not in sys.modules
"""

CHANGED_ARGUMENTS = """
def change(module):
    module.TrainingArguments.set_optimizer = lambda self, name, options: None
Change("transformers.training_args", change)
import adopt_hf
from transformers import TrainingArguments
refused(lambda: TrainingArguments("x", optim="adopt", use_cpu=True), words)
assert "transformers.trainer" not in sys.modules
refused(adopt_hf.register, words)
"""

# A warning instead of the names.
NO_NAMES = """
def change(module):
    module.OptimizerNames = "adamw_torch adafactor".split()
Change("transformers.training_args", change)
import adopt_hf
print("no word yet", file=sys.stderr)
import transformers.training_args
adopt_hf.unregister()
"""

STAND_IN_MODULES = """
import types
for name in ("training_args", "trainer", "integrations.deepspeed"):
    sys.modules["transformers." + name] = types.ModuleType(name)
print("no word yet", file=sys.stderr)
import adopt_hf
adopt_works()
refused(adopt_hf.register, words)
adopt_hf.unregister()
"""

METHOD = "has changed transformers.trainer.Trainer.get_optimizer_cls_and_kwargs"
LATER = {  # name -> code, words of the error, and whether a warning has them
    "older": ("import adopt_hf\n" + OLDER + STEP + UNFIT, ["5.2", "4.57.1"], False),
    "broken": ("import adopt_hf\n" + BROKEN + STEP + UNFIT, ["transformers.trainer cannot be imported"], False),
    "changed": ("import adopt_hf\n" + CHANGE + CHANGED_LATER + STEP + UNFIT, [METHOD], False),
    "changed, seen by the name": (CHANGE + CHANGED_LATER + STEP + BY_THE_NAME, [METHOD], False),
    "broken, seen by the name": (BROKEN + STEP + BY_THE_NAME, ["transformers.trainer cannot be imported"], False),
    "changed, arguments are older": (CHANGE + CHANGED_LATER + STEP + OLDER_ARGUMENTS, [METHOD], False),
    "changed DeepSpeed": (
        CHANGE + CHANGED_DEEPSPEED + STEP + UNFIT,
        ["transformers.integrations.deepspeed.deepspeed_optim_sched"],
        False,
    ),
    "changed arguments": (
        CHANGE + STEP + CHANGED_ARGUMENTS,
        ["has changed transformers.training_args.TrainingArguments.set_optimizer"],
        False,
    ),
    "no names": (CHANGE + NO_NAMES, ["has changed OptimizerNames"], True),
    "stand-ins": (STEP + STAND_IN_MODULES, ["has changed OptimizerNames"], True),
}

# Where TrainingArguments cannot be imported, there is no name that could explain itself.
NO_ARGUMENTS = """
import sys
import adopt_hf
adopt_works()
print("no word yet", file=sys.stderr)
try:
    from transformers import TrainingArguments
    raise AssertionError("imported")
except (ImportError, RuntimeError):
    pass
refused(adopt_hf.register, ["transformers.training_args cannot be imported (RuntimeError: operator torchvision"])
adopt_hf.unregister()
print("fine")
"""

# Stand-ins of test suites for packages that they do not want to import.
STAND_INS = """
import sys, types
for name in ("transformers", "accelerate", "deepspeed"):
    sys.modules[name] = types.ModuleType(name)
import adopt_hf
adopt_works()
refused(adopt_hf.register, ["transformers"])
print("fine")
"""

OLD_ACCELERATE = """
import accelerate
accelerate.__version__ = "1.9.0"
import adopt_hf, torch
adopt_works()
p = torch.nn.Parameter(torch.ones(2))
prepare = accelerate.Accelerator(cpu=True).prepare
refused(lambda: prepare(adopt_hf.ADOPT([p])), ["accelerate 1.10", "1.9.0"])
prepare(torch.optim.SGD([p], lr=0.1))
print("fine")
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("simulated", "words"),
    [
        (OLDER, ["5.2", "4.57.1"]),
        (CHANGED, ["get_optimizer_cls_and_kwargs", importlib.metadata.version("transformers")]),
        (BROKEN, ["transformers.trainer cannot be imported (RuntimeError: operator torchvision::nms does not exist)"]),
    ],
    ids=["older", "changed", "broken"],
)
def test_an_unfit_transformers(simulated: str, words: list[str], tmp_path: Path) -> None:
    done = run("-c", simulated + STEP + UNFIT, *words, cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert "all but the parser" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
    assert "\nthe parser" in done.stdout


def test_broken_training_arguments(tmp_path: Path) -> None:
    """One's own loop works, and when transformers is imported a line in the log says why the name does not."""
    broken = BROKEN.replace("trainer_optimizer", "trainer_utils")
    done = run("-c", broken + STEP + NO_ARGUMENTS, cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert done.stdout == "fine\n", done.stderr
    before, after = done.stderr.split("no word yet\n")
    assert "adopt" not in before
    assert after.count("transformers.training_args cannot be imported") == 1, after


@pytest.mark.slow
@pytest.mark.parametrize("name", LATER)
def test_an_unfit_transformers_that_is_imported_later(name: str, tmp_path: Path) -> None:
    code, words, is_warned = LATER[name]
    code = "import sys\nwords = sys.argv[1:]\n" + code + "print('fine')\n"
    done = run("-c", code, *words, cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("fine\n")
    before, _, after = done.stderr.rpartition("no word yet\n")
    assert all(word in after for word in words) == is_warned, done.stderr
    assert "adopt" not in before


@pytest.mark.parametrize("code", [STAND_INS, OLD_ACCELERATE], ids=["stand-ins", "an old accelerate"])
def test_the_import_never_fails_for_another_package(code: str, tmp_path: Path) -> None:
    assert python("-c", STEP + code, cwd=tmp_path, modules=BEFORE_TRANSFORMERS) == "fine\n"


def test_without_transformers(tmp_path: Path) -> None:
    assert python("-c", STEP + MISSING, cwd=tmp_path, env=WITHOUT_TRANSFORMERS) == "fine\n"


@pytest.mark.parametrize(
    ("version", "fits"), [("4.57.6", False), ("5.1.9", False), ("5.2.0", True), ("5.10.1", True), ("6.0.0.dev0", True)]
)
def test_which_versions_fit(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule alone; what it asks of the code is there in the installed one."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    reason = patches.mismatch()
    assert (reason is None) == fits, reason
    if reason is not None:
        assert version in reason
        assert "5.2" in reason


@pytest.mark.parametrize("name", ["_load_from_checkpoint", "_load_best_model"])
def test_a_changed_way_to_load_checkpoints_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, name, lambda model, folder: None)
    reason = patches.mismatch()
    assert reason is not None
    assert f"has changed transformers.trainer.Trainer.{name}, which adopt_hf relies on: update adopt_hf" in reason


# -- a name that transformers has itself -------------------------------------------------------------------------------


def test_a_name_of_transformers_stays(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be after a pull request there: the name is theirs, before, in and after `register`."""
    before = list(OptimizerNames)
    monkeypatch.setattr(names, "NAMES", ("stable_adamw", "adopt_here"))
    monkeypatch.setattr(names, "registered", set())
    try:
        adopt_hf.register()
        assert names.registered == {"adopt_here"}
        assert OptimizerNames("adopt_here") in list(OptimizerNames)
        said = [record for record in caplog.records if "transformers has optim='stable_adamw' itself" in record.message]
        assert [record.levelname for record in said] == ["WARNING"]
        names.explain_optimizer_name("stable_adamw", "not this one")
        assert OptimizerNames("stable_adamw") is OptimizerNames.STABLE_ADAMW
    finally:
        for name in ("stable_adamw", "adopt_here"):
            names.remove_optimizer_name(name)
    assert list(OptimizerNames) == before
    assert OptimizerNames("stable_adamw") is OptimizerNames.STABLE_ADAMW


def test_a_name_of_transformers_that_builds_adopt_hf_is_ours(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the handler calls, it imports adopt_hf, and the name is not registered twice."""

    def handler(context: Any) -> Any:
        from adopt_hf import trainer_kwargs

        return trainer_kwargs(context.args, context.model)

    before = list(OptimizerNames)
    monkeypatch.setattr(names, "NAMES", ("stable_adamw",))
    monkeypatch.setattr(names, "registered", set())
    monkeypatch.setitem(trainer_optimizer._OPTIMIZER_HANDLERS, OptimizerNames.STABLE_ADAMW, handler)
    adopt_hf.register()
    assert names.registered == {"stable_adamw"}
    assert [record for record in caplog.records if "itself" in record.message] == []
    assert list(OptimizerNames) == before
    names.remove_names()
    assert list(OptimizerNames) == before


def test_an_explained_name_can_be_removed() -> None:
    before, attributes = list(OptimizerNames), dict(vars(OptimizerNames))
    names.explain_optimizer_name("adopt_there", "the reason")
    names.explain_optimizer_name("adopt_thence", "another reason")
    with pytest.raises(ImportError, match="the reason"):
        OptimizerNames("adopt_there")
    with pytest.raises(ImportError, match="another reason"):
        OptimizerNames("adopt_thence")
    names.remove_optimizer_name("adopt_there")
    names.remove_optimizer_name("adopt_thence")
    with pytest.raises(ValueError, match="adopt_there is not a valid OptimizerNames"):
        OptimizerNames("adopt_there")
    assert list(OptimizerNames) == before
    adopt_hf.register()  # the names of this package, and how members are pickled, are as they were
    assert dict(vars(OptimizerNames)).keys() == attributes.keys()


# -- a second copy of the module ---------------------------------------------------------------------------------------

TWO_COPIES = """
import pickle, sys
import torch

def imported():
    for name in [name for name in sys.modules if name.split(".")[0] == "adopt_hf"]:
        del sys.modules[name]
    import adopt_hf
    return adopt_hf

first, second = imported(), imported()          # before accelerate is there, and transformers
import accelerate
from transformers import Trainer, TrainingArguments
third = imported()                              # and after
import adopt_hf
assert len({first.ADOPT, second.ADOPT, third.ADOPT}) == 3 and adopt_hf is third

config = {}
plugin = type("Plugin", (), {"deepspeed_config": config})
accelerator = type("Accelerator", (), {"state": type("State", (), {"deepspeed_plugin": plugin})})()
def kept(copy, cls):
    config.clear()
    config["zero_optimization"] = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    optimizer = cls([torch.nn.Parameter(torch.ones(2))])
    try:
        accelerate.Accelerator.prepare(accelerator, optimizer)
    except AttributeError:                      # the original, on this stand-in, after our part has run
        pass
    known = sys.modules["adopt_hf.integrations.deepspeed.initialize"].adopt_class
    return config.get("zero_force_ds_cpu_optimizer"), known(optimizer) is cls, known(cls) is cls
for copy in (first, second, third):
    assert kept(copy, copy.ADOPT) == (False, True, True), kept(copy, copy.ADOPT)
assert kept(third, torch.optim.AdamW) == (None, False, False)

args = TrainingArguments("x", optim="adopt", use_cpu=True)
assert Trainer.get_optimizer_cls_and_kwargs(args)[0] is third.ADOPTW    # the newest copy is in use
assert pickle.loads(pickle.dumps(args)).optim == "adopt"
third.unregister()                              # and takes back what the others have done
assert not hasattr(accelerate.Accelerator.prepare, "_adopt_hf_wraps")
assert not [finder for finder in sys.meta_path if type(finder).__name__ == "_AfterImport"]
try:
    TrainingArguments("x", optim="adopt", use_cpu=True)
    raise AssertionError("still registered")
except ValueError:
    pass
print("fine")
"""


def test_copies_of_the_module_know_each_other(tmp_path: Path) -> None:
    """Of a reload, a notebook or a test runner: ADOPT is known by a mark, not by its class."""
    assert python("-c", TWO_COPIES, cwd=tmp_path, modules=BEFORE_TRANSFORMERS) == "fine\n"
