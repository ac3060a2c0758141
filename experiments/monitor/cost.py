"""The cost of observing a step of ADOPT, next to a whole training step of GPT-2: `python -m experiments monitor`.

Training steps of one model, some of them observed, in a random order. The cost at an interval is the difference of the
medians, divided by the interval and by the median of a step that is not observed.
"""

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adopt_hf.monitor import Monitor
from experiments.harness import command, machine
from experiments.step import clock, options
from experiments.step.peers import OURS
from experiments.training.steps import MODELS, Training

RESULTS = machine.RESULTS / "monitor.json"
INTERVALS = (500, 100, 10)  # the first is the default of the Trainer's logging_steps
WARMUP = 3  # steps


def measure(model: str, batch: int, length: int, device: str, rounds: int, seed: int) -> dict[str, Any]:
    """Return the medians of a step that is observed and of one that is not, in milliseconds."""
    training = Training(OURS, model, batch, length, device, seed, None)
    optimizer: Any = training.optimizer
    monitor = Monitor(optimizer, training.model)
    time_step = clock.of(device)
    times: dict[bool, list[float]] = {False: [], True: []}
    order = [False] * WARMUP + random.Random(seed).sample([False, True] * rounds, 2 * rounds)

    def step() -> None:
        training.step()
        monitor.figures()

    for i, observed in enumerate(order):
        monitor.is_due = observed
        spent = time_step(step)
        if i >= WARMUP:
            times[observed].append(spent.ms)
    medians = {("observed" if key else "plain"): statistics.median(ms) for key, ms in times.items()}
    return {"model": model, "batch": batch, "length": length, "device": device, "rounds": rounds, "ms": medians}


def shares(row: dict[str, Any]) -> dict[int, float]:
    """Return the share of the training time that observing takes, by the interval."""
    plain = row["ms"]["plain"]
    return {interval: max(0.0, row["ms"]["observed"] - plain) / plain / interval for interval in INTERVALS}


def sentence(row: dict[str, Any]) -> str:
    """Return the result as the page shows it."""
    plain, observed = row["ms"]["plain"], row["ms"]["observed"]
    costs = ", ".join(f"{100 * share:.2g} % with logging_steps={n}" for n, share in shares(row).items())
    return (
        f"A training step of {row['model']} ({row['batch']} x {row['length']} tokens, {row['threads']} thread) takes "
        f"{plain:,.0f} ms, and {observed:,.0f} ms if it is measured: {costs}. {machine.sentence(row['conditions'])}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments monitor", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="gpt2-124m")
    parser.add_argument("--batch", type=options.positive, default=1, help="sequences a step")
    parser.add_argument("--length", type=options.positive, default=256, help="tokens a sequence")
    parser.add_argument("--rounds", type=options.positive, default=9, help="steps of each kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    quick = {"model": "gpt2-toy", "length": 64, "rounds": 3, "out": command.TRIED / "monitor.json"}
    args = command.parse(parser, arguments, **quick)
    options.check_device(parser, args.device)
    conditions = machine.now("torch", "transformers")
    found = measure(args.model, args.batch, args.length, args.device, args.rounds, args.seed)
    row = found | {"threads": torch.get_num_threads(), "seed": args.seed, "conditions": conditions}
    args.out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    print(sentence(row))
    return 0


def text() -> str:
    """Return the sentence of the kept result."""
    return sentence(json.loads(RESULTS.read_text(encoding="utf-8")))


TEXTS = {"monitor cost": text}
