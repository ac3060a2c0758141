"""The connection to the other processes: how long a process waits for them, and the error if they are lost."""

import argparse
import os
import socket
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from adopt_hf.integrations.checkpoints import last_complete

# gloo names its file in most errors, and says no more than this in the others.
OF_GLOO = (
    "gloo/transport",
    "Application timeout caused pair closure",
    "Connection closed by peer",
    "Timed out waiting",
)


def connect(values: argparse.Namespace) -> None:
    """Make the process group of several processes on CPUs, with the timeout that was asked for.

    transformers 5.23 passes `ddp_timeout` on, except with `use_cpu`: a process would wait for half an hour.

    Args:
        values: The values of TrainingArguments, as argparse has parsed them.
    """
    if values.use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=True, backend=values.ddp_backend, timeout=timedelta(seconds=values.ddp_timeout))


def explain(error: BaseException, output_dir: Path | None) -> str | None:
    """Return what happened and how to continue, or None if `error` is not that of a lost connection.

    Args:
        error: The error that ended this process.
        output_dir: The folder of the run, or None if it has none.
    """
    says = str(error) if isinstance(error, RuntimeError) else ""
    lost = isinstance(error, getattr(torch.distributed, "DistError", ())) or any(words in says for words in OF_GLOO)
    if not lost:
        return None
    checkpoint = None if output_dir is None else last_complete(output_dir)[0]
    restarts, allowed = (int(os.environ.get(f"TORCHELASTIC_{n}", "0")) for n in ("RESTART_COUNT", "MAX_RESTARTS"))
    if restarts < allowed:
        how = "torchrun starts all processes again, and the run continues from its last complete checkpoint"
    elif checkpoint is None:
        how = "there is no complete checkpoint, so start again in another --output_dir"
    else:
        how = (
            f"start the same command again on all machines, with --resume_from_checkpoint last, which is "
            f"{checkpoint.name} in {output_dir}"
        )
    return (
        f"rank {os.environ.get('RANK', '0')} (on {socket.gethostname()}) has lost the connection to another rank: a "
        "process of the run has ended, the network between the machines is cut, or a rank took longer than "
        f"--ddp_timeout seconds. The logs of the other machines may say more. To continue: {how}"
    )
