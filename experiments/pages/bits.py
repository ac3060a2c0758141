"""The sentences on the cost of fewer bits, from the rows of `low_bits` and `state_formats`."""

import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from experiments.harness import machine as conditions
from experiments.harness import runs
from experiments.low_bits import run as low_bits
from experiments.low_bits.run import half_range, losses, of
from experiments.pages import launches

Rows = list[dict[str, Any]]
KAHAN = low_bits.RESULTS.with_name("low_bits_kahan.jsonl")
MODELS = {"gpt2": "GPT-2", "llama": "LLaMA"}


@cache
def kept(path: Path = low_bits.RESULTS) -> Rows:
    """Return the rows of a results file."""
    return runs.lines(path)


def mean(recipe: str, variant: str, rows: Rows | None = None) -> float:
    """Return the mean held-out loss over the seeds."""
    return statistics.fmean(losses(of(rows or kept(), recipe, variant)))


def difference(recipe: str, variant: str, of_variant: str = "ADOPT") -> str:
    return f"{mean(recipe, variant) - mean(recipe, of_variant):+.3f}"


def peak(recipe: str, variant: str) -> int:
    """Return the median peak of a process, in MiB."""
    return round(statistics.median(row["result"]["peak_mib"] for row in of(kept(), recipe, variant)))


def behind() -> str:
    """Return by how much ADOPT with the paper's rule ends behind AdamW in the short GPT-2 run."""
    return f"{mean('gpt2', 'ADOPT') - mean('gpt2', 'AdamW'):.2f}"


def words() -> str:
    """Return the sentences on losses and memory with fewer bits."""
    eight = " and ".join(f"{difference(recipe, 'ADOPT, 8 bits')} on {title}" for recipe, title in MODELS.items())
    stochastic = "ADOPT, bf16 parameters, stochastic, 8 bits"
    both = " and ".join(f"{difference(recipe, stochastic)} on {title}" for recipe, title in MODELS.items())
    spread = " and ".join(f"{half_range(of(kept(), recipe, 'ADOPT')):.3f}" for recipe in MODELS)
    adamw = {recipe: mean(recipe, "ADOPT") - mean(recipe, "AdamW") for recipe in MODELS}
    in_bf16 = [peak("llama", name) for name in low_bits.VARIANTS if "bf16" in name and "Kahan" not in name]
    return "\n".join(
        (
            f"- **Losses.** Moments in 8 bits change the loss by {eight}; with bfloat16 parameters that are rounded "
            f"stochastically by {both}. Half the range of ADOPT's seeds is {spread}. Rounded to nearest, bfloat16 "
            f"parameters change it by {difference('llama', 'ADOPT, bf16 parameters')} on LLaMA.",
            f"- **AdamW is ahead** by {adamw['gpt2']:.2f} on GPT-2, where ADOPT has the paper's rule (no warm-up of "
            "beta2), "
            f"and by {adamw['llama']:.3f} on LLaMA, where it has the warm-up with k = 1. AdamW's beta2 is 0.999 in "
            "both.",
            "- **Peak memory** is of the whole process, and these models are small. On LLaMA bfloat16 parameters "
            "raise it, "
            f"from {peak('llama', 'ADOPT'):,} MiB to between {min(in_bf16):,} and {max(in_bf16):,}; what takes it "
            "was not looked "
            f"into. Moments in 8 bits change it from {peak('llama', 'ADOPT')} to {peak('llama', 'ADOPT, 8 bits')} "
            "MiB there "
            f"and from {peak('gpt2', 'ADOPT')} to {peak('gpt2', 'ADOPT, 8 bits')} on GPT-2.",
        )
    )


def kernels() -> str:
    """Return the sentences on LLaMA's losses with other kernels of torch."""
    kept_rows = launches.read("other_kernels")
    rows = {(row["base"], row["kernels"]): row for row in kept_rows["rows"]}
    here, other, base = rows["AVX2", "AVX2"], rows["AVX2", "none"], rows["none", "none"]
    return (
        f"From the same base model ADOPT ends at {other['ADOPT']} instead of {here['ADOPT']} and AdamW at "
        f"{other['AdamW']} "
        f"instead of {here['AdamW']}; from a base model that was pretrained with these kernels, too (an empty "
        f"`XDG_CACHE_HOME`), ADOPT at {base['ADOPT']} and AdamW at {base['AdamW']}. "
        f"{conditions.sentence(kept_rows['conditions'])}"
    )


def kahan() -> str:
    """Return the sentences that compare Kahan summation with stochastic rounding."""
    rows = kept(KAHAN)
    nearest, stochastic = "ADOPT, bf16 parameters, Kahan", "ADOPT, bf16 parameters, stochastic"
    found = [mean("llama", variant, rows) for variant in (nearest, stochastic, "ADOPT")]
    seeds = sorted({row["settings"]["seed"] for row in rows})
    half = half_range(of(rows, "llama", "ADOPT"))
    last = rows[-1]["conditions"]
    return (
        f"On LLaMA's recipe, seeds {seeds[0]} to {seeds[-1]}, the held-out loss is {found[0]:.3f} with it, "
        f"{found[1]:.3f} "
        f"with stochastic rounding and {found[2]:.3f} in float32; half the range of the seeds is {half:.3f}. "
        "(Measured on "
        f"{last['date']} on {last['processor']}, torch {last['torch']}, commit {conditions.listed(commits(rows))}.)"
    )


def commits(rows: Rows) -> list[str]:
    return [row["conditions"]["commit"] for row in rows]


# -- formats of v ------------------------------------------------------------------------------------------------------


@cache
def formats() -> dict[str, dict[str, dict[str, float]]]:
    """Return the numbers of each format, by course."""
    found: dict[str, dict[str, dict[str, float]]] = launches.read("state_formats")["formats"]
    return found


def octaves(name: str) -> list[float]:
    """Return the errors of v at the end, by course."""
    return [course["octaves"] for course in formats()[name].values()]


def nearest_bfloat16() -> str:
    found = octaves("bfloat16, nearest")
    return f"{min(found):.1f} to {max(found):.1f}"


def nearest_8_bits() -> str:
    return f"{max(max(octaves(name)) for name in ('dynamic 8-bit map, nearest', 'logarithmic map, nearest')):.1f}"


def growing_logarithmic() -> str:
    return f"{formats()['logarithmic map, stochastic']['growing']['octaves']:.2f}"


def worst_float() -> str:
    return f"{max(octaves('float with 3 bits of mantissa, stochastic')):.1f}"


def bias_low_discrepancy() -> str:
    found = min(course["mean"] for course in formats()["the same, low-discrepancy bits"].values())
    return f"{100 * (1 - found):.0f}"


TEXTS: dict[str, Callable[[], str]] = {
    "losses with fewer bits in words": words,
    "losses with other kernels": kernels,
    "behind AdamW on GPT-2": behind,
    "Kahan summation": kahan,
    "bfloat16 to nearest": nearest_bfloat16,
    "8 bits to nearest": nearest_8_bits,
    "logarithmic map where v grows": growing_logarithmic,
    "float with 3 bits at its worst": worst_float,
    "bias of low-discrepancy bits": bias_low_discrepancy,
}
