"""The observer that `adopt-hf compare` puts into each Trainer of a run: what really trained, how fast, in what memory.

It works in processes whose ADOPT_HF_COMPARE names a file that `adopt-hf compare` has written: the optimizer, the
learning rate, the seed and the output folder that it asked for. A training with other values ends with an error before
its first step. What is seen goes into the folder of that file, one `seen-PID.json` for each process.
"""

import json
import math
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

from adopt_hf.identity import innermost

VARIABLE = "ADOPT_HF_COMPARE"
STATE = "trainer_state.json"
EVERY = 1.0  # seconds between two reports of progress
GONE = 143  # the exit code of a run whose `adopt-hf compare` is gone: that of SIGTERM


class NotComparableError(RuntimeError):
    """A training that does not use what `adopt-hf compare` has asked for."""


def is_asked() -> bool:
    """Return whether this process belongs to a run of `adopt-hf compare`."""
    return bool(os.environ.get(VARIABLE))


# -- transformers.trainer.DEFAULT_CALLBACKS ----------------------------------------------------------------------------
# Issue: only a script can give its Trainer a callback, and the script is to stay as it is.
# Why:   every Trainer begins with the callbacks of this list (transformers 5.2 to 5.24).
# Remove when: transformers can load callbacks that a plugin or a variable names.


def add() -> None:
    """Make each Trainer of this process begin with an observer. End the process with its `adopt-hf compare`.

    Raises:
        NotComparableError: If this version of transformers has no list of callbacks that every Trainer begins with.
    """
    from transformers import trainer

    if not hasattr(trainer, "DEFAULT_CALLBACKS"):
        raise NotComparableError(
            "adopt-hf compare cannot see what trains: this version of transformers has no "
            "transformers.trainer.DEFAULT_CALLBACKS. Install an earlier transformers"
        )
    remove()
    trainer.DEFAULT_CALLBACKS.append(_observer_class())
    folder = Path(os.environ[VARIABLE]).parent
    threading.Thread(target=_end_with, args=(Path(_asked()["alive"]), folder), daemon=True).start()


def remove() -> None:
    """Undo `add`. A module that is no transformers of today has nothing to undo."""
    from transformers import trainer

    callbacks = getattr(trainer, "DEFAULT_CALLBACKS", [])
    callbacks[:] = [one for one in callbacks if not hasattr(one, "adopt_hf_observes")]


def _asked() -> dict[str, Any]:
    with open(os.environ[VARIABLE], encoding="utf-8") as file:
        found: dict[str, Any] = json.load(file)
    return found


def _end_with(pipe: Path, folder: Path) -> None:
    """End this process at once when no process holds the named pipe open for writing any more."""
    if not hasattr(os, "mkfifo"):
        return
    try:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(reader, True)
        while os.read(reader, 1):
            pass
    except FileNotFoundError:
        pass  # removed by an `adopt-hf compare` that has come to its end, or by the next one
    print(f"adopt-hf compare is gone, and with it ends its run in {folder}", file=sys.stderr, flush=True)
    os._exit(GONE)


def _observer_class() -> Any:
    from transformers import TrainerCallback

    class Observer(_Observer, TrainerCallback):
        """The observer as a callback. The base class imports transformers."""

    return Observer


class _Observer:
    """Check one training against what was asked for, and write down what it does."""

    adopt_hf_observes = True

    def __init__(self) -> None:
        self.asked = _asked()
        self.folder = Path(os.environ[VARIABLE]).parent
        self.seen: dict[str, Any] = {"pid": os.getpid(), "output_dir": None}
        self.ours = False  # whether the training writes into the output folder of the run
        self.stepped: set[str] = set()
        self.expected: type | None = None
        self.times: list[float] = []
        self.last: float | None = None  # the end of the step before, if nothing but a step has happened since
        self.written = -math.inf
        self.hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen["output_dir"] = os.path.abspath(args.output_dir)
        self.ours = _is_inside(args.output_dir, self.asked["output_dir"])
        if not self.ours:
            # Another process of the command may train a model of its own, with words of its own.
            if self.asked["output_dir"] in sys.argv:
                self.refuse("output_dir", args.output_dir)
            self.write()
            return
        for name in ("optim", "learning_rate", "seed"):
            value = getattr(getattr(args, name), "value", getattr(args, name))
            self.seen[name] = value
            if value != self.asked[name]:
                self.refuse(name, value)
        from torch.optim.optimizer import register_optimizer_step_post_hook
        from transformers import Trainer

        self.expected, _ = Trainer.get_optimizer_cls_and_kwargs(args, kwargs.get("model"))
        self.hook = register_optimizer_step_post_hook(lambda optimizer, *_: self.saw(type(optimizer)))
        self.progress(state)

    def saw(self, cls: type) -> None:
        """Note the class of an optimizer that has made a step."""
        assert self.expected is not None
        fits = issubclass(cls, self.expected) or _is_deepspeeds(cls, self.expected)
        self.stepped.add(self.expected.__name__ if fits else cls.__name__)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.ours:
            return
        now = time.perf_counter()
        if self.last is not None:
            self.times.append(now - self.last)
        self.last = now
        if self.hook is not None and self.stepped:
            self.check_optimizer(args, kwargs.get("optimizer"))
        if time.monotonic() - self.written > EVERY:
            self.progress(state)

    def check_optimizer(self, args: Any, optimizer: Any) -> None:
        """Compare the class of what stepped with the one that the Trainer makes for this `optim`."""
        assert self.expected is not None
        self.hook.remove()
        self.hook = None
        wanted = self.expected.__name__
        if wanted not in self.stepped and not isinstance(innermost(optimizer), self.expected):
            self.refuse("optim", f"an optimizer {', '.join(sorted(self.stepped))} of the script's own")
        self.seen["optimizer"] = wanted

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = None
        if self.ours:
            self.progress(state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.ours:
            return
        if self.hook is not None:
            self.hook.remove()
        self.seen["step_ms"] = 1000 * statistics.median(self.times) if self.times else None
        self.seen["peak_bytes"], self.seen["peak_of"] = _peak()
        self.progress(state)
        if state.is_world_process_zero:
            state.save_to_json(str(self.folder / STATE))

    def refuse(self, name: str, value: Any) -> None:
        """End the training, and let `adopt-hf compare` say why."""
        self.seen["refused"] = [name, str(value)]
        self.write()
        raise NotComparableError(
            f"adopt-hf compare asked for --{name} {self.asked[name]}, and the script trains with {value}"
        )

    def progress(self, state: Any) -> None:
        """Write down how far the training is."""
        losses = [entry["loss"] for entry in state.log_history[-5:] if "loss" in entry]
        self.seen |= {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "loss": losses[-1] if losses else None,
            "is_first": state.is_world_process_zero,
        }
        self.write()

    def write(self) -> None:
        """Write what is seen, in one piece."""
        self.written = time.monotonic()
        path = self.folder / f"seen-{os.getpid()}.json"
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(self.seen), encoding="utf-8")
        os.replace(unfinished, path)


def _is_inside(path: str, folder: str) -> bool:
    inside, outside = os.path.realpath(path), os.path.realpath(folder)
    return inside == outside or inside.startswith(outside + os.sep)


def _is_deepspeeds(cls: type, expected: type) -> bool:
    """Return whether `cls` is DeepSpeed's Adam, which Accelerate and DeepSpeed put in place of torch's AdamW."""
    return cls.__module__.startswith("deepspeed.") and "Adam" in cls.__name__ and expected.__name__ == "AdamW"


def _peak() -> tuple[int | None, str]:
    """Return the most memory that this process has used, and whether it is a GPU's or the host's."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())), "GPU"
    status = Path("/proc/self/status")
    if status.is_file():  # unlike ru_maxrss this is not inherited from the process that has started this one
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "VmHWM" in lines:
            return 1024 * int(lines["VmHWM"].split()[0]), "host"
    try:
        import resource
    except ImportError:  # Windows
        return None, "host"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024), "host"
