"""`import adopt_hf` imports torch only, and its patches of other packages are complete in every order of imports.

Each order is a piece of code in a process of its own. After it the same checks follow: the name
works in the parser, in the Trainer and in pickles, every function that has to be patched is, and `unregister()` leaves
nothing. Imports that are under way are met by a finder that imports adopt_hf while another package is half imported.
"""

import pickle
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from adopt_hf.integrations.transformers import registration
from tests.support.forks import BEFORE_TRANSFORMERS
from tests.support.processes import python, run

HEAVY = (
    *("transformers", "accelerate", "peft", "datasets", "deepspeed"),
    *("torch.distributed.checkpoint", "torch.distributed.tensor", "torch._dynamo"),
)

LIGHT = f"""
import sys
import {{imports}}
from adopt_hf import ADOPT, LayerwiseADOPT, param_groups, trainer_kwargs
param_groups(torch.nn.Linear(3, 2), 0.1)
adopt_hf.unregister()                                                 # needs no other package either
print([name for name in {HEAVY} if name in sys.modules])              # an optimizer of torch, once made, imports some
"""

# What every order below has in front of it ...
BEGIN = """
import importlib.abc, sys

def loaded(*names):
    return [name for name in names if name in sys.modules]

class Meanwhile(importlib.abc.MetaPathFinder):
    '''Executes code when a module is looked for, that is while the module that imports it is half imported.'''

    def __init__(self, name, code, half=()):
        self.name, self.code, self.half, self.met = name, code, half, False
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        if name == self.name and not self.met:
            self.met = True
            assert [n for n in self.half if not sys.modules[n].__spec__._initializing] == [], self.half
            exec(self.code)

TRAINER, ARGUMENTS = "transformers.trainer", "transformers.training_args"
CALLBACK, DEEPSPEED = "transformers.trainer_callback", "transformers.integrations.deepspeed"
"""

# ... and what follows.
CHECK = """
import copyreg, inspect, pickle
import torch, accelerate
from accelerate.optimizer import AcceleratedOptimizer
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

assert [hook for hook in sys.meta_path if isinstance(hook, Meanwhile) and not hook.met] == []
import adopt_hf

args, = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(
    ["--output_dir", "x", "--use_cpu", "--optim", "adopt", "--report_to", "none"]
)
assert args.optim is OptimizerNames("adopt") is OptimizerNames.ADOPT
assert pickle.loads(pickle.dumps(args)).optim is args.optim
assert Trainer.get_optimizer_cls_and_kwargs(args)[0] is adopt_hf.ADOPTW
args.adam_beta2 = 0.999                                               # Adam's default, and assigned: it is used
assert Trainer.get_optimizer_cls_and_kwargs(args)[1]["betas"] == (0.9, 0.999)

assert adopt_hf.trainer_kwargs(TrainingArguments("x", optim="sgd", use_cpu=True))[0] is adopt_hf.ADOPTW

PATCHED = [
    (torch.optim.Optimizer, "load_state_dict"),
    (TrainingArguments, "__setattr__"),
    (TrainingArguments, "set_optimizer"),
    (Trainer, "get_optimizer_cls_and_kwargs"),
    (Trainer, "_load_from_checkpoint"),
    (Trainer, "_load_best_model"),
    (sys.modules[TRAINER], "load_fsdp_optimizer"),
    (sys.modules[TRAINER], "deepspeed_init"),
    (sys.modules[DEEPSPEED], "deepspeed_optim_sched"),
    (sys.modules[DEEPSPEED].HfTrainerDeepSpeedConfig, "trainer_config_process"),
    (accelerate.Accelerator, "prepare"),
    (AcceleratedOptimizer, "load_state_dict"),
    (sys.modules["accelerate.accelerator"], "load_fsdp_optimizer"),
]
def depth(owner, name):
    function, wrapped = getattr(owner, name), 0
    while hasattr(function, "__wrapped__"):
        wrapped += hasattr(function, "_adopt_hf_wraps")
        function = function.__wrapped__
    return wrapped
assert [(owner, name, depth(owner, name)) for owner, name in PATCHED if depth(owner, name) != 1] == []

adopt_hf.unregister()
assert [(owner, name) for owner, name in PATCHED if depth(owner, name) != 0] == []
assert "ADOPT" not in OptimizerNames.__members__ and OptimizerNames not in copyreg.dispatch_table
assert [finder for finder in sys.meta_path if hasattr(finder, "adopt_hf_waits_for")] == []
specs = [getattr(module, "__spec__", None) for module in sys.modules.values()]
assert [spec for spec in specs if type(spec).__name__ == "Watched"] == []
print("fine")
"""

ORDERS = {
    "adopt_hf first": """
import adopt_hf
assert loaded("transformers", "accelerate") == []
import transformers
assert loaded(ARGUMENTS, TRAINER) == []                               # transformers is as lazy as without adopt_hf
from transformers import HfArgumentParser, TrainingArguments
parser = HfArgumentParser(TrainingArguments)
action, = [action for action in parser._actions if action.dest == "optim"]
assert "adopt" in action.choices
parser.parse_args_into_dataclasses(["--output_dir", "x", "--use_cpu", "--optim", "sgd"])
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
config = HfTrainerDeepSpeedConfig({"optimizer": {"type": "ADOPT", "params": {"lr": "auto"}}})
config.trainer_config_process(TrainingArguments("x", learning_rate=0.25, use_cpu=True))
assert config.config["optimizer"]["params"]["lr"] == 0.25, config.config
assert config.config["optimizer"]["params"]["decouple"] is True, config.config
assert loaded(TRAINER) == []
""",
    "after transformers": """
import transformers
import adopt_hf
assert loaded(ARGUMENTS, TRAINER) == []
""",
    "after TrainingArguments, without the Trainer": """
from transformers import TrainingArguments
args = TrainingArguments("x", optim="sgd", use_cpu=True)
import adopt_hf
args.adam_beta2 = 0.999                                               # seen, although args are older
assert adopt_hf.trainer_kwargs(args)[1]["betas"] == (0.9, 0.999)
from transformers.training_args import OptimizerNames
from transformers.trainer_utils import SchedulerType
assert OptimizerNames("adopt") is OptimizerNames.ADOPT
assert loaded(TRAINER) == []
""",
    "after Trainer and a subclass of it": """
from transformers import Trainer, TrainingArguments
class Mine(Trainer):
    pass
import adopt_hf
args = TrainingArguments("x", optim="adopt", use_cpu=True)
assert Mine.get_optimizer_cls_and_kwargs(args)[0] is adopt_hf.ADOPTW
""",
    "adopt_hf first, and its optimizers": """
import adopt_hf, torch
from transformers import Trainer, TrainingArguments
for optim in ("adopt", "sgd"):
    args = TrainingArguments("x", optim=optim, use_cpu=True, report_to="none")
    options = {"optimizer_cls_and_kwargs": adopt_hf.trainer_kwargs(args)} if optim == "sgd" else {}
    trainer = Trainer(torch.nn.Linear(2, 2), args, **options)         # imports DeepSpeed
    assert type(trainer.create_optimizer()) is adopt_hf.ADOPTW
""",
    "register() and unregister() by hand": """
import adopt_hf
adopt_hf.unregister()
from transformers import Trainer, TrainingArguments
try:
    TrainingArguments("x", optim="adopt", use_cpu=True)
    raise AssertionError("still registered")
except ValueError:
    pass
adopt_hf.register()
adopt_hf.register()                                                   # twice is once
""",
    "while transformers is half imported": """
Meanwhile("transformers.utils", "import adopt_hf", ["transformers"])
""",
    "while training_args is half imported": """
Meanwhile("transformers.trainer_utils", "import adopt_hf", [ARGUMENTS])
from transformers import TrainingArguments
assert loaded(TRAINER) == []
""",
    "while accelerate is half imported, for training_args": """
Meanwhile("accelerate.state", "import adopt_hf", ["accelerate"])
import transformers.training_args
""",
    "while the Trainer is half imported": """
Meanwhile("transformers.trainer_optimizer", "import adopt_hf", [TRAINER])
from transformers import Trainer
""",
    "while the Trainer's DeepSpeed is half imported": """
Meanwhile("accelerate.utils.deepspeed", "import adopt_hf", [DEEPSPEED])
import transformers.integrations.deepspeed
""",
    "while trainer_callback is half imported": """
Meanwhile(ARGUMENTS, "import adopt_hf", [CALLBACK])                   # what a hook on training_args does
import transformers.trainer_callback
""",
    "adopt_hf, then trainer_callback": """
import adopt_hf                                                       # training_args ends inside trainer_callback
from transformers.trainer_callback import TrainerCallback
from transformers.training_args import OptimizerNames
assert OptimizerNames("adopt") is OptimizerNames.ADOPT
assert loaded(TRAINER) == []
""",
    "several copies, three of them half way": """
import adopt_hf
first = adopt_hf
again = "for name in [n for n in sys.modules if n.split('.')[0] == 'adopt_hf']: del sys.modules[name]\\nimport adopt_hf"
Meanwhile("transformers.trainer_utils", again + "\\n" + again, [ARGUMENTS])  # two that wait for one import
from transformers import TrainingArguments
Meanwhile("transformers.trainer_optimizer", again, [TRAINER])
from transformers import Trainer
assert len({first, sys.modules["adopt_hf"]}) == 2
""",
    "unregister() half way": """
import adopt_hf
Meanwhile("transformers.trainer_utils", "import adopt_hf; adopt_hf.unregister()", [ARGUMENTS])
from transformers import Trainer
from transformers.training_args import OptimizerNames
assert "ADOPT" not in OptimizerNames.__members__
assert not hasattr(Trainer.get_optimizer_cls_and_kwargs, "_adopt_hf_wraps")
adopt_hf.register()
""",
    "imported and unregistered half way": """
Meanwhile("transformers.trainer_utils", "import adopt_hf; adopt_hf.unregister()", [ARGUMENTS])
from transformers import Trainer
from transformers.training_args import OptimizerNames
assert "ADOPT" not in OptimizerNames.__members__
import adopt_hf
adopt_hf.register()
""",
    "an import that fails first": """
import adopt_hf
Meanwhile("transformers.trainer_utils", "raise RuntimeError('not today')", [ARGUMENTS])
try:
    import transformers.training_args
    raise AssertionError("imported")
except RuntimeError:
    pass
""",
    "half way of an import that fails first": """
Meanwhile("transformers.trainer_utils", "import adopt_hf; raise RuntimeError('not today')", [ARGUMENTS])
try:
    import transformers.training_args
    raise AssertionError("imported")
except RuntimeError:
    pass
""",
    "transformers is imported again": """
import adopt_hf
from transformers import TrainingArguments
for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
    del sys.modules[name]
""",
    "another thread": """
import threading
seen = threading.Event(), threading.Event()
Meanwhile("transformers.trainer_utils", "seen[0].set(); assert seen[1].wait(60)", [ARGUMENTS])
thread = threading.Thread(target=lambda: __import__(ARGUMENTS))
thread.start()
assert seen[0].wait(60)
import adopt_hf                                                       # training_args is half imported, over there
seen[1].set()
thread.join()
""",
}

UNPICKLED = """
import pickle
with open({path!r}, "rb") as file:
    args = pickle.load(file)                                          # the file imports adopt_hf by itself
assert loaded("adopt_hf") == ["adopt_hf"]
assert args.optim == "adopt"
"""

FAILS = "import that fails first"  # in the names of orders: a warning says why there is no name


FROM_FILE = "unpickled in a process that has imported nothing"
EVERYDAY = (
    "adopt_hf first",
    "after TrainingArguments, without the Trainer",
    "while training_args is half imported",
    "while the Trainer is half imported",
    FROM_FILE,
)


@pytest.mark.parametrize(
    "order", [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.slow) for name in (*ORDERS, FROM_FILE)]
)
def test_orders(order: str, tmp_path: Path) -> None:
    file = tmp_path / "training_args.bin"
    file.write_bytes(pickle.dumps(TrainingArguments(str(tmp_path / "x"), optim="adopt", use_cpu=True)))
    code = ORDERS.get(order) or UNPICKLED.format(path=str(file))
    done = run("-c", BEGIN + code + CHECK, cwd=tmp_path, modules=BEFORE_TRANSFORMERS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("fine\n")
    assert ("transformers.training_args cannot be imported (RuntimeError: not today)" in done.stderr) == (
        FAILS in order
    )


@pytest.mark.parametrize("imports", ["torch, adopt_hf", "adopt_hf, torch"])
def test_an_own_loop_imports_torch_only(imports: str, tmp_path: Path) -> None:
    assert python("-c", LIGHT.format(imports=imports), cwd=tmp_path) == "[]\n"


def test_modules_that_are_waited_for_exist() -> None:
    assert [name for name in registration.MODULES if name not in sys.modules] == []
