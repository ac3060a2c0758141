"""One optimizer step, of every optimizer that is installed, over every shape: `python -m experiments step --help`."""

import argparse
import datetime
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from experiments.harness import command, fresh
from experiments.step import case, hardware, options, plot, results, tables, temporaries
from experiments.step.peers import BASELINE, OURS, PEERS, installed, searching
from experiments.step.shapes import SHAPES
from experiments.step.stepper import DTYPES

DEFAULT_DTYPES = {"cpu": ["fp32"], "cuda": ["fp32", "bf16"]}
DEFAULT_THREADS = [1, 2]


class Unit(NamedTuple):
    """The task of one process: temporaries of a peer on a CPU, or, without a peer, a whole case."""

    shape: str
    dtype: str
    threads: int | None
    peer: str | None = None

    def title(self) -> str:
        threads = "" if self.threads is None else f", threads {self.threads}"
        return f"{self.shape} {self.dtype}{threads}: " + (f"temporaries of {self.peer}" if self.peer else "rounds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write. Return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    args = command.parse(parser, given, scale=0.001, rounds=3)
    options.check_device(parser, args.device)
    date = datetime.date.today().isoformat()
    with searching(args.peers_path):
        environment = hardware.environment(args.device)
        here = {name: _why_not(name, args.device) for name in PEERS if name in {*args.peers, BASELINE, OURS}}
    default = results.default_path("step", args.device, environment["hardware"], date, args.scale)
    out = options.target(parser, args.out, default)

    result = {
        "benchmark": "step",
        "device": args.device,
        "date": date,
        "command": options.command("step", given),
        "seed": args.seed,
        "rounds": args.rounds,
        "scale": args.scale,
        "environment": environment,
        "cases": [],
    }
    for found in _measure(args, here):
        result["cases"].append(found)
        results.write(out, result)  # a run that is cut short keeps what it has
        print(f"\n{tables.case_title(found)}\n\n{tables.step_table([found], args.device)}", flush=True)
    goals = tables.goals_table(args.device, [[case] for case in result["cases"]])
    print(f"\n{tables.notes(result['cases'])}\n\nGoals\n\n{goals}\n")
    print(tables.runs([result]))
    options.say(f"numbers: {out}")
    options.say(plot.bars(result, out.with_suffix(".png")))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments step", description=__doc__)
    options.add_common(parser)
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=list(PEERS),
        help=f"Optimizers (default: all). {BASELINE} and {OURS} are always among them.",
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="Shapes (default: those of the device).")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="Dtypes (default: fp32, on a GPU also bf16).")
    parser.add_argument(
        "--threads", nargs="+", type=options.positive, help="Threads of each case (default: 1 2, on a GPU torch's)."
    )
    parser.add_argument("--scale", type=options.share, default=1.0, help="Share of the tensors' sizes (default: 1).")
    parser.add_argument(
        "--skip-temporaries", action="store_true", help="Do not measure temporaries, a process each on a CPU."
    )
    return parser


def _why_not(name: str, device: str) -> str:
    """Return why a peer cannot be measured here, or "" if it can."""
    if device not in PEERS[name].devices:
        return f"runs on {' and '.join(PEERS[name].devices)} only"
    return "" if installed(PEERS[name]) else "not installed"


def _measure(args: argparse.Namespace, here: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the cases. A peer whose process dies while its temporaries are measured is kept out of the rounds."""
    units = []
    probes = args.device == "cpu" and not args.skip_temporaries and temporaries.measurable()
    threads: list[int | None] = args.threads or (DEFAULT_THREADS if args.device == "cpu" else [None])
    for shape in args.shapes or [name for name, shape in SHAPES.items() if args.device in shape.devices]:
        for dtype in args.dtypes or DEFAULT_DTYPES[args.device]:
            if probes:
                most = max(n for n in threads if n is not None)  # all are numbers on a CPU
                units += [Unit(shape, dtype, most, name) for name, why in here.items() if not why]
            units += [Unit(shape, dtype, n) for n in threads]

    known: dict[tuple[str, str, str], dict[str, Any]] = {}
    for unit in options.announced(units):
        if unit.peer is not None:
            known[unit.shape, unit.dtype, unit.peer] = _probe(args, unit)
            continue
        before = {name: known.get((unit.shape, unit.dtype, name), {"why": why}) for name, why in here.items()}
        yield _case(args, unit, before)


def _probe(args: argparse.Namespace, unit: Unit) -> dict[str, Any]:
    try:
        grown = fresh.call(
            temporaries.on_cpu,
            options.environment(args.device, unit.threads) | temporaries.ENVIRONMENT,
            peer=unit.peer,
            threads=unit.threads,
            **_common(args, unit),
        )
    except RuntimeError as error:
        return {"why": str(error)}
    return {"why": "", "temporaries_bytes": grown}


def _case(args: argparse.Namespace, unit: Unit, before: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the case with a row for every peer in `before`, in that order."""
    peers = [name for name, row in before.items() if not row["why"]]
    try:
        found = fresh.call(
            case.measure,
            options.environment(args.device, unit.threads),
            device=args.device,
            threads=unit.threads,
            peers=peers,
            rounds=args.rounds,
            **_common(args, unit),
        )
    except RuntimeError as error:
        found = case.head(args.device, unit.shape, unit.dtype, args.scale, unit.threads or torch.get_num_threads())
        found["rows"] = {name: {"why": f"the rounds of all failed: {error}"} for name in peers}
    rows = {name: row | found["rows"].get(name, {}) for name, row in before.items()}
    return found | {"rows": rows}


def _common(args: argparse.Namespace, unit: Unit) -> dict[str, Any]:
    return {
        "shape": unit.shape,
        "dtype": unit.dtype,
        "scale": args.scale,
        "seed": args.seed,
        "peers_path": args.peers_path,
    }
