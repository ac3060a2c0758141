"""The error of v in formats of few bits at beta2 = 0.9999: `python -m experiments state_formats` (minutes, one thread).

Each format holds v of the same elements over the same gradients; after 20,000 steps the table has, for each course of
the gradients, the root mean square of log2(v / its float32 twin) in octaves, the mean of v / twin, and the share of v
that became zero. The numbers are kept in docs/results/state_formats.json. docs/low_bits.md says what the formats
are; `make docs-numbers` writes its table.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from adopt_hf.state import quantization
from adopt_hf.state.rounding import GOLDEN, WORD, float_of, key, random_bits, to_bfloat16, word_of
from experiments.harness import command, pages
from experiments.harness import machine as conditions

RESULTS = conditions.RESULTS / "state_formats.json"
BETA2, BLOCK, BLOCKS = 0.9999, 256, 8
COURSES = ("stationary", "growing", "shrinking", "sparse")

Format = Callable[[Tensor, int], Tensor]  # v before it is stored, and t, to v as it is read again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--results", type=Path, default=RESULTS, help="File in which the numbers are kept.")
    args = command.parse(parser, steps=300, results=command.TRIED / "state_formats.json")
    torch.set_num_threads(1)
    found = {"steps": args.steps, "conditions": conditions.now("torch"), "formats": {name: {} for name in formats()}}
    for course in COURSES:
        for name, numbers in measure(course, args.steps).items():
            found["formats"][name][course] = numbers
    args.results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def table(found: Mapping[str, Any]) -> str:
    """Return the numbers as a table, with their conditions below it."""
    rows = [(name, *(cell(**courses[course]) for course in COURSES)) for name, courses in found["formats"].items()]
    return pages.table(["octaves RMS; mean of v / twin; % zero", *COURSES], rows) + (
        f"\n\n{BLOCK * BLOCKS:,} elements in blocks of {BLOCK}, {found['steps']:,} steps, beta2 = {BETA2}, seed 0. "
        + conditions.sentence(found["conditions"])
    )


def cell(octaves: float, mean: float, zero: float) -> str:
    return f"{octaves:.2f}; {mean:.2f}" + (f"; {100 * zero:.1f} %" if zero else "")


def measure(course: str, steps: int) -> dict[str, dict[str, float]]:
    """Return the errors of v in each format after `steps` steps."""
    generator = torch.Generator().manual_seed(0)
    size = torch.exp2(torch.empty(BLOCKS, BLOCK).uniform_(-3, 3, generator=generator))
    stores, held, exact = formats(), {}, torch.empty(0)
    for t in tqdm(range(steps), desc=course):
        g = torch.randn(size.shape, generator=generator) * size
        if course in ("growing", "shrinking"):
            g *= 2 ** ((8 if course == "growing" else -8) * t / steps)
        if course == "sparse" and t:
            g *= torch.rand(size.shape, generator=generator) < 0.01
        square = g * g
        exact = BETA2 * exact + (1 - BETA2) * square if t else square
        for name, store in stores.items():
            held[name] = store(BETA2 * held[name] + (1 - BETA2) * square if t else square, t)
    result = {}
    for name, v in held.items():
        some = v > 0
        result[name] = {
            "octaves": (v[some] / exact[some]).log2().pow(2).mean().sqrt().item(),
            "mean": (v / exact).mean().item(),
            "zero": (~some).double().mean().item(),
        }
    return result


def formats() -> dict[str, Format]:
    """Return all formats that are compared, each with a state of its own."""
    return {
        "bfloat16, nearest": lambda v, t: v.bfloat16().float(),
        "bfloat16, stochastic (`state_bits=16`)": lambda v, t: to_bfloat16(v, uniform(t), above_zero=True).float(),
        "dynamic 8-bit map, nearest": lambda v, t: by_map(v, dynamic_map(), None),
        "dynamic 8-bit map, stochastic": lambda v, t: by_map(v, dynamic_map(), uniform(t)),
        "dynamic map of sqrt(v), stochastic": lambda v, t: by_map(v, dynamic_map() ** 2, uniform(t)),
        "logarithmic map, nearest": lambda v, t: by_map(v, logarithmic_map(), None),
        "logarithmic map, stochastic": lambda v, t: by_map(v, logarithmic_map(), uniform(t)),
        "float with 3 bits of mantissa, stochastic": lambda v, t: with_mantissa(v, 3, uniform(t)),
        "the same, low-discrepancy bits": lambda v, t: with_mantissa(v, 3, low_discrepancy(t)),
        "decaying scale, 2 to 5 bits (`state_bits=8`)": DecayingScale(),
    }


def uniform(t: int) -> Tensor:
    """Return random bits, new in each step."""
    return random_bits(key((t,)), BLOCK * BLOCKS)[0].view(BLOCKS, BLOCK)


def low_discrepancy(t: int) -> Tensor:
    """Return bits that are evenly spread over the successive steps of an element."""
    return random_bits(key((0,)), BLOCK * BLOCKS)[0].view(BLOCKS, BLOCK) + t * GOLDEN & WORD


def dynamic_map() -> Tensor:
    """Return seven decades, the largest with 128 linear steps, the next with 64, and so on, as in bitsandbytes."""
    values = [torch.zeros(1), torch.ones(1)]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2 ** (i + 1) + 1)
        values.append((bounds[:-1] + bounds[1:]) / 2 * 10.0 ** (i - 6))
    return torch.cat(values).sort().values


def logarithmic_map() -> Tensor:
    """Return 255 values with equal ratios, 24 octaves in all, and no zero."""
    return torch.exp2(-torch.arange(255).flip(0) * (24 / 254))


def by_map(v: Tensor, values: Tensor, bits: Tensor | None) -> Tensor:
    """Return v as one of `values` times its block's largest v: the nearest, or by bits a neighbour."""
    scale = v.amax(-1, keepdim=True)
    x = v / scale
    above = torch.searchsorted(values, x).clamp(1, len(values) - 1)
    low, high = values[above - 1], values[above]
    share = ((x - low) / (high - low)).clamp(0, 1)
    up = share > 0.5 if bits is None else bits.double() / 2**32 < share
    return torch.where(up, high, low) * scale


def with_mantissa(v: Tensor, mantissa: int, bits: Tensor) -> Tensor:
    """Return v cut to a few bits of mantissa, with an exponent of 5 bits below the block's largest."""
    shift = 23 - mantissa
    word = word_of(v)
    lowest = (word.amax(-1, keepdim=True) >> 23) - (252 >> mantissa) + 1 << 23
    return float_of(torch.maximum(word + (bits >> (32 - shift)) >> shift << shift, lowest))


class DecayingScale:
    """The format of `adopt_hf.state.quantization`."""

    def __init__(self) -> None:
        self.scales = quantization.new_scales(torch.Size((BLOCKS, BLOCK)), BLOCK, torch.device("cpu"))

    def __call__(self, v: Tensor, t: int) -> Tensor:
        state = quantization.encode(torch.zeros_like(v), v, self.scales, BETA2 if t else 1.0, BLOCK, uniform(t))
        self.scales = state.scales
        return quantization.dequantize(state, BLOCK)[1]
