"""With this folder on PYTHONPATH, each process writes down which optimizers have stepped, as torch's own hook sees it.

A process that has stepped leaves STEPPED/PID.json: a list of [class, steps, param groups].
"""

import atexit
import json
import os
import sys


class Watch:
    """Add the hook when the Trainer is looked for."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "transformers.trainer":
            from torch.optim.optimizer import register_optimizer_step_post_hook

            register_optimizer_step_post_hook(note)


steps: dict[object, int] = {}


def note(optimizer: object, args: object, kwargs: object) -> None:
    if not steps:
        atexit.register(write)
    steps[optimizer] = steps.get(optimizer, 0) + 1


def write() -> None:
    seen = [
        (
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
            count,
            [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],  # type: ignore
        )
        for optimizer, count in steps.items()
    ]
    with open(os.path.join(os.environ["STEPPED"], f"{os.getpid()}.json"), "w") as file:
        json.dump(seen, file, default=str)


sys.meta_path.insert(0, Watch)  # type: ignore[arg-type]
