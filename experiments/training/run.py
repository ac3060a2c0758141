"""Whole training steps of GPT-2 with ADOPT and with AdamW, interleaved: `python -m experiments training --help`."""

import argparse
import datetime
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.harness import command, fresh
from experiments.step import hardware, options, results, tables, temporaries
from experiments.step.peers import BASELINE, OURS, PEERS, installed, searching
from experiments.step.shapes import GPT2_124M, elements
from experiments.training import steps as training

BATCHES = {"cpu": (1, 256), "cuda": (16, 1024)}  # sequences, and tokens in each


class Unit(NamedTuple):
    """The task of one process: the peak of one peer, or, without a peer, the speed of all peers."""

    threads: int | None
    peer: str | None = None

    def title(self) -> str:
        threads = "" if self.threads is None else f"threads {self.threads}, "
        return threads + (f"peak of {self.peer}" if self.peer else "rounds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write. Return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    args = command.parse(parser, given, model="gpt2-toy", length=64, rounds=3)
    options.check_device(parser, args.device)
    if importlib.util.find_spec("transformers") is None:
        options.fail(parser, "transformers is not installed, and the model is its GPT-2: pip install transformers")
    batch, length = BATCHES[args.device]
    args.batch, args.length = args.batch or batch, args.length or length
    positions = training.MODELS[args.model].positions
    if args.length > positions:
        options.fail(parser, f"--length must be at most {positions} for {args.model}, got {args.length}")
    date = datetime.date.today().isoformat()
    with searching(args.peers_path):
        environment = hardware.environment(args.device)
        missing = {name: "not installed" for name in args.peers if not installed(PEERS[name])}
    scale = elements(training.MODELS[args.model].sizes()) / elements(GPT2_124M.sizes())
    default = results.default_path("train", args.device, environment["hardware"], date, scale)
    out = options.target(parser, args.out, default)

    result = {
        "benchmark": "train",
        "device": args.device,
        "date": date,
        "command": options.command("training", given),
        "seed": args.seed,
        "rounds": args.rounds,
        "scale": scale,
        "model": args.model,
        "batch": args.batch,
        "length": args.length,
        "precision": "bf16 autocast" if args.device == "cuda" else "fp32",
        "environment": environment,
        "cases": _measure(args, missing),
    }
    results.write(out, result)
    for case in result["cases"]:
        print(f"\n{tables.train_title(result, case)}\n\n{tables.train_table(case)}")
    print(f"\n{tables.runs([result])}")
    options.say(f"numbers: {out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments training", description=__doc__)
    options.add_common(parser)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=[BASELINE, OURS])
    parser.add_argument(
        "--threads", nargs="+", type=options.positive, help="Threads of each case (default: torch's own)."
    )
    parser.add_argument("--model", choices=training.MODELS, default="gpt2-124m")
    parser.add_argument("--batch", type=options.positive, help="Sequences in a step (default: 1, on a GPU 16).")
    parser.add_argument("--length", type=options.positive, help="Tokens in a sequence (default: 256, on a GPU 1024).")
    return parser


def _measure(args: argparse.Namespace, missing: dict[str, str]) -> list[dict[str, Any]]:
    threads: list[int | None] = args.threads or [None]
    peers = [name for name in args.peers if name not in missing]
    probed = peers if args.device == "cuda" or temporaries.measurable() else []
    units = [Unit(n, peer) for n in threads for peer in (*probed, None)]
    cases = []
    rows: dict[str, dict[str, Any]] = {}
    for unit in options.announced(units):
        if unit.peer is not None:
            rows[unit.peer] = _peak(args, unit)
            continue
        able = [name for name in peers if not rows.get(name, {}).get("why")]
        found = fresh.call(
            training.speed,
            options.environment(args.device, unit.threads),
            peers=able,
            rounds=args.rounds,
            **_common(args, unit),
        )
        before = {name: rows.get(name, {"why": missing.get(name, "")}) for name in args.peers}
        cases.append(found | {"rows": {name: row | found["rows"].get(name, {}) for name, row in before.items()}})
        rows = {}
    return cases


def _peak(args: argparse.Namespace, unit: Unit) -> dict[str, Any]:
    environment = options.environment(args.device, unit.threads) | temporaries.ENVIRONMENT
    try:
        return {
            "why": "",
            "peak_bytes": fresh.call(training.peak, environment, peer=unit.peer, **_common(args, unit)),
        }
    except RuntimeError as error:
        return {"why": str(error)}


def _common(args: argparse.Namespace, unit: Unit) -> dict[str, Any]:
    return {
        "model": args.model,
        "batch": args.batch,
        "length": args.length,
        "device": args.device,
        "threads": unit.threads,
        "seed": args.seed,
        "peers_path": args.peers_path,
    }
