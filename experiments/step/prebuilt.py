"""The kernel of a wheel beside the one that this machine's compiler makes: `python -m experiments prebuilt`.

Steps of one thread over one tensor, of each format, in a random order. The fallbacks are what runs where there is
neither a wheel with a kernel nor a compiler: foreach, and the definition for moments of fewer bits.
"""

import argparse
import ctypes
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

import hatch_build
from adopt_hf import ADOPT
from adopt_hf.backends.cpu import compiler, launch, source
from adopt_hf.backends.cpu.call import declared
from experiments.harness import command, machine
from experiments.harness.pages import table
from experiments.step import options
from experiments.step.rounds import Times, interleave, quartiles, ratio

RESULTS = machine.RESULTS / "prebuilt.json"
NATIVE, WHEEL, FALLBACK = "-march=native", "the wheel's", "fallback"
FORMATS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "float16": (torch.float16, {}),
    "float64": (torch.float64, {}),
    "float32, 16-bit moments": (torch.float32, {"state_bits": 16}),
    "float32, 8-bit moments": (torch.float32, {"state_bits": 8}),
    "bfloat16, 8-bit moments, rounded": (torch.bfloat16, {"state_bits": 8, "bf16_stochastic_round": True}),
}
WARMUP = 3


def optimizer(name: str, elements: int, backend: str, seed: int) -> ADOPT:
    """Return an optimizer of one tensor with a gradient, after some steps."""
    dtype, settings = FORMATS[name]
    generator = torch.Generator().manual_seed(seed)
    p, g = (torch.randn(elements, generator=generator).to(dtype) for _ in range(2))
    p.requires_grad_()
    p.grad = g
    made = ADOPT([p], lr=1e-3, backend=backend, **settings)
    for _ in range(WARMUP):
        made.step()
    return made


def timed(step: Callable[[], object]) -> Times:
    """Return the time of one step. Only the process's own time counts, since other processes may run."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    wall, cpu = 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)
    return Times(ms=cpu, wall_ms=wall, cpu_ms=cpu, host_ms=None)


def libraries(folder: Path) -> dict[str, Any]:
    """Return the native library, the wheel's, and the wheel's with each of its other sets of instructions.

    Raises:
        hatch_build.NoLibraryError: If no wheel with a library can be built on this machine.
    """
    wanted = hatch_build.here()
    if wanted is None:
        raise hatch_build.NoLibraryError("this machine is no Linux on x86-64 or aarch64")
    made = declared(ctypes.CDLL(str(hatch_build.build(wanted, folder)[0])))
    found = {NATIVE: declared(compiler.load(source.KERNEL)), WHEEL: made}
    for name in list(wanted.sets)[-2::-1]:  # but the best
        function = getattr(declared(made, f"adopt_step_{name}"), f"adopt_step_{name}")
        found[f"its {name}"] = SimpleNamespace(adopt_step=function)
    return found


def measure(name: str, elements: int, rounds: int, seed: int, found: dict[str, Any]) -> dict[str, Any]:
    """Return a row: milliseconds and ratios to the native library."""
    fused = optimizer(name, elements, "fused", seed)
    slow = optimizer(name, elements, "reference" if "bits" in str(FORMATS[name][1]) else "foreach", seed)

    def with_library(library: Any) -> Callable[[], Times]:
        def step() -> Times:
            with patch.object(launch, "_library", lambda: library):
                return timed(fused.step)

        return step

    steps = {key: with_library(library) for key, library in found.items()}
    done, errors = interleave(steps, rounds, WARMUP, seed)
    few, more_errors = interleave(
        {NATIVE: steps[NATIVE], FALLBACK: lambda: timed(slow.step)}, max(3, rounds // 8), 1, seed
    )
    assert not errors | more_errors, errors | more_errors
    return {
        "format": name,
        "elements": elements,
        "rounds": rounds,
        "ms": {key: quartiles([r[key].ms for r in done]) for key in steps},
        "to_native": {key: ratio(done, key, NATIVE) for key in found if key != NATIVE}
        | {FALLBACK: ratio(few, FALLBACK, NATIVE)},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments prebuilt", description=__doc__)
    parser.add_argument("--elements", type=options.positive, nargs="+", default=[2**18, 2**21], help="of the tensors")
    parser.add_argument("--rounds", type=options.positive, default=41, help="steps of each library")
    parser.add_argument("--formats", choices=FORMATS, nargs="+", default=list(FORMATS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    quick = {"elements": [2**12], "rounds": 3, "out": command.TRIED / "prebuilt.json"}
    args = command.parse(parser, arguments, **quick)
    conditions = machine.now("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = {"conditions": conditions, "seed": args.seed, **measured(args)}
    finally:
        torch.set_num_threads(threads)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(shown(result))
    return 0


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Return the set of instructions that the wheel's library chooses, and the rows."""
    with tempfile.TemporaryDirectory() as folder:
        found = libraries(Path(folder))
        found[WHEEL].adopt_instructions.restype = ctypes.c_char_p
        instructions = found[WHEEL].adopt_instructions().decode()
        rows = [measure(name, n, args.rounds, args.seed, found) for n in args.elements for name in args.formats]
    return {"instructions": instructions, "rows": rows}


def shown(result: dict[str, Any]) -> str:
    """Return the table of a result, and its conditions."""
    rows, sets = [], [key for key in result["rows"][0]["to_native"] if key.startswith("its ")]
    for row in result["rows"]:
        wheel, slow = row["to_native"][WHEEL], row["to_native"][FALLBACK]
        rows.append(
            [
                row["format"],
                f"{row['elements']:,}",
                f"{row['ms'][NATIVE]['median']:.3g}",
                f"{row['ms'][WHEEL]['median']:.3g}",
                f"{wheel['median']:.2f} ({wheel['q1']:.2f} to {wheel['q3']:.2f})",
                *(f"{row['to_native'][name]['median']:.2f}" for name in sets),
                f"{slow['median']:.1f}",
            ]
        )
    head = ["format", "elements", "native, ms", "wheel, ms", "wheel / native", *(f"{x} / native" for x in sets)]
    head.append("fallback / native")
    about = (
        f"The wheel runs its set for {result['instructions']}. CPU time of one thread, medians of "
        f"{result['rows'][0]['rounds']} interleaved steps; ratios are of the same round, with their quartiles. "
    )
    return f"{table(head, rows)}\n\n{about}{machine.sentence(result['conditions'])}"


def text() -> str:
    """Return the table of the kept result."""
    return shown(json.loads(RESULTS.read_text(encoding="utf-8")))


TEXTS = {"prebuilt": text}
