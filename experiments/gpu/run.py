"""Check in minutes that a GPU computes what it should: `python -m experiments gpu_check --help`.

On the GPU, in the root of a checkout:        python -m experiments gpu_check --budget 420
Without one, in Triton's interpreter:         TRITON_INTERPRET=1 python -m experiments gpu_check --dry

torch, Triton, transformers, accelerate and peft are enough; nothing is downloaded. Each check is a line: PASS, FAIL or
SKIP. A section that ends with an error is a FAIL, and the next one runs. The run ends with a table, and the file
`gpu_check.json` has all of it. The exit code is 1 if a check failed, or if the budget ended the run.
"""

import argparse
import datetime
import importlib
import importlib.metadata
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adopt_hf import backends
from experiments.gpu import costs, frameworks, kernels, selfcheck
from experiments.gpu import whole_runs as runs
from experiments.gpu.check import Check
from experiments.step import hardware, options

SECTIONS: dict[str, Callable[[Check], None]] = {
    section.__name__: section
    for section in (
        kernels.environment,
        selfcheck.self_check,
        kernels.parity,
        kernels.specials,
        kernels.layouts,
        kernels.rounded,
        runs.optimizer,
        kernels.recompilation,
        runs.streams,
        runs.graphs,
        runs.scaler,
        costs.foreach,
        costs.host,
        costs.speed,
        kernels.huge,
        frameworks.trainer,
        frameworks.fsdp2,
    )
}
FILE = "gpu_check.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print, write; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if not args.dry:
        options.check_device(parser, "cuda")
    elif os.environ.get("TRITON_INTERPRET") != "1":
        options.fail(parser, "--dry runs in Triton's interpreter: set TRITON_INTERPRET=1 for the command")
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if args.dry else "cuda")
    environment = hardware.environment(device.type)
    head = {"date": datetime.date.today().isoformat(), "dry": args.dry, "environment": environment}
    check = Check(device, args.dry, args.out / FILE, args.budget, head)
    watch = threading.Timer(args.budget, _end, [check])
    watch.daemon = True
    watch.start()
    with _as_on_a_gpu() if args.dry else nullcontext():
        check.run([SECTIONS[name] for name in args.only or SECTIONS])
    watch.cancel()
    print(f"\n{check.table()}\n\n{check.summary()}\nverdicts: {check.path}")
    return int(check.failed() > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="Run toy sizes in Triton's interpreter, without a GPU.")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=f"Some of {', '.join(SECTIONS)}."
    )
    parser.add_argument(
        "--budget", type=options.positive, default=420, help="Seconds until the run ends (default: 420)."
    )
    parser.add_argument("--out", type=Path, default=Path(), help=f"Folder of {FILE} (default: the current one).")
    return parser


def _end(check: Check) -> None:
    """End the process when the budget is used up, whatever a section is waiting for: the verdicts are kept."""
    check.say(False, "the section was running when the budget ended", f"{check.budget:.0f} s")
    print(f"\n{check.table()}\n\n{check.summary()}\nverdicts: {check.path}", flush=True)
    os._exit(1)


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """Make backend="fused" the Triton kernel on CPU tensors, and round numbers as on a GPU, within the block.

    Triton's interpreter cuts bfloat16 off, and torch's root on a CPU can be one place off.
    """
    importlib.import_module("experiments.gpu.interpreter")
    table, root = backends.TABLE["fused"], Tensor.sqrt
    backends.TABLE["fused"] = (backends.TRITON,)
    Tensor.sqrt = lambda t: torch.from_numpy(np.asarray(np.sqrt(t.numpy())))  # type: ignore[method-assign]
    try:
        yield
    finally:
        backends.TABLE["fused"], Tensor.sqrt = table, root  # type: ignore[method-assign]
