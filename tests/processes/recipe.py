"""Runs a script of examples/gpt2_pretraining as its users do, on processes of the CPU, and tells what it saw.

accelerate launch --config_file CONFIG --num_processes 2 recipe.py FOLDER SCRIPT [the script's arguments]

The script runs unchanged; around it stand what the CPU needs (FSDP2, which Accelerate turns on for GPUs alone), and
what a test needs: every process writes FOLDER/rankR.json before its first step, adds a byte to FOLDER/stepsR with every
step, and takes 20 ms longer for it, so that there is time to kill it.
"""

import json
import os
import runpy
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers.trainer
from accelerate.state import AcceleratorState

import adopt_hf
from tests.processes.job import CpuAccelerator, deepspeed_is_on
from tests.support.processes import end, without_extensions

PAUSE = 0.02  # seconds a step


def note(folder: Path, rank: str, optimizer: adopt_hf.ADOPT) -> None:
    """Write what is training in this process, under another name first, so that no process reads half of it."""
    state = AcceleratorState()
    seen = {
        "pid": os.getpid(),
        "world_size": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "distributed_type": state.distributed_type.value,
        "stage": state.deepspeed_plugin.zero_stage if state.distributed_type.value == "DEEPSPEED" else None,
        "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
    }
    unfinished = folder / f"unfinished{rank}"
    unfinished.write_text(json.dumps(seen))
    unfinished.replace(folder / f"rank{rank}.json")


def watch_steps(folder: Path) -> None:
    original, rank = adopt_hf.ADOPT.step, os.environ.get("RANK", "0")
    steps = open(folder / f"steps{rank}", "ab", buffering=0)  # noqa: SIM115  until the process ends

    def step(self: adopt_hf.ADOPT, *args: Any, **kwargs: Any) -> Any:
        if not (folder / f"rank{rank}.json").exists():
            note(folder, rank, self)
        time.sleep(PAUSE)
        result = original(self, *args, **kwargs)
        steps.write(b".")
        return result

    adopt_hf.ADOPT.step = step  # type: ignore[method-assign]


def wait_no_longer(seconds: float) -> None:
    """Give the process groups that DeepSpeed makes a timeout, where theirs is half an hour."""
    new_group = torch.distributed.new_group

    def with_timeout(*args: Any, **options: Any) -> Any:
        return new_group(*args, **{"timeout": timedelta(seconds=seconds)} | options)

    torch.distributed.new_group = with_timeout


def main() -> None:
    folder, script, *rest = sys.argv[1:]
    adopt_hf.__version__ = os.environ.get("ADOPT_HF_TEST_VERSION", adopt_hf.__version__)
    watch_steps(Path(folder))
    accelerate.Accelerator = transformers.trainer.Accelerator = CpuAccelerator
    if deepspeed_is_on():
        without_extensions()
        if "ADOPT_HF_TEST_TIMEOUT" in os.environ:
            wait_no_longer(float(os.environ["ADOPT_HF_TEST_TIMEOUT"]))
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
    end()
