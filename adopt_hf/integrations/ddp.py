"""Note the modules of DistributedDataParallel, so that ADOPT knows which ranks train one model."""

from typing import Any

from adopt_hf.distributed import peers
from adopt_hf.integrations.patching import Patch


def make(original: Any, module: Any, *args: Any, **kwargs: Any) -> None:
    """Construct a DistributedDataParallel, and note its process group."""
    original(module, *args, **kwargs)
    peers.note_replicated(module, module.process_group)


PATCHES = (
    Patch(
        target="torch.nn.parallel:DistributedDataParallel.__init__",
        around=make,
        takes="self, module",
        issue="If two ranks have different options, their replicas of the model drift apart, and no error is raised. "
        "A parameter does not tell the optimizer that it is in DistributedDataParallel.",
        why="The Trainer, Accelerate and your own loop all construct this class.",
        remove_when="DistributedDataParallel marks the parameters that it holds, or compares options itself.",
        optional=True,
    ),
)
