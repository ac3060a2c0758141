"""The sentences on the kept runs of `step` and `training`: ranges over all runs."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from experiments.harness import machine as conditions
from experiments.harness import pages
from experiments.pages import launches
from experiments.step import report, results, tables
from experiments.step.goals import GOALS
from experiments.step.peers import BASELINE, EIGHT_BITS, FEW_UNOBSERVED, HALF_UNOBSERVED, OURS
from experiments.step.shapes import SHAPES

LARGE = ("flat-124m", "gpt2-124m")
SIXTEEN_BITS, DEEPSPEED = "adopt_hf-16bit", "deepspeed-cpu-adam"
SHORT = {"flat-124m": "the flat tensor", "gpt2-124m": "GPT-2's tensors", "lora-40m": "LoRA's tensors"}
THREADS = {1: "one thread", 2: "two threads"}
Case = Mapping[str, Any]


@cache
def steps() -> tuple[Mapping[str, Any], ...]:
    """Return the runs on a CPU."""
    found = results.read_all(results.FOLDER)
    return tuple(r for r in found if (r["benchmark"], r["device"]) == ("step", "cpu"))


def cases(threads: int, shapes: Sequence[str] = LARGE) -> list[Case]:
    """Return each case of each run with this number of threads."""
    return [c for r in steps() for c in r["cases"] if c["threads"] == threads and c["shape"] in shapes]


def ratio(name: str, key: str, threads: int, shapes: Sequence[str] = LARGE) -> str:
    """Return the range of a ratio of a row over all cases and runs."""
    rows = [case["rows"].get(name, {"why": "not there"}) for case in cases(threads, shapes)]
    return tables.medians([row for row in rows if not row["why"]], key)


def to_deepspeed(threads: int) -> str:
    """Return the range of our time over DeepSpeedCPUAdam's."""
    rows = [case["rows"].get(DEEPSPEED, {"why": "not there"}) for case in cases(threads)]
    return tables.span(1 / row["to_ours"]["median"] for row in rows if not row["why"])


def short(case: Case) -> str:
    """Return a few words for a case."""
    shape, threads = case["shape"], case["threads"]
    return f"{SHORT.get(shape, SHAPES[shape].title)}, {THREADS.get(threads, f'{threads} threads')}"


def words() -> str:
    """Return the comparison of a float32 step, and each goal that a run has missed."""
    dates = sorted(result["date"] for result in steps())
    ours = " and ".join(f"{ratio(OURS, 'to_adamw', n)} with {THREADS[n]}" for n in THREADS)
    cpu = " and ".join(ratio(OURS, "cpu_to_adamw", n) for n in THREADS)
    deepspeed = " and ".join(f"{to_deepspeed(n)} with {THREADS[n]}" for n in THREADS)
    lines = [
        f"- **{len(steps())} runs** are kept, of {dates[0]} to {dates[-1]} and of the commits in the table; none is "
        "left out. On the two shapes of 124M a step of ADOPT took, as a multiple of AdamW fused's time, "
        f"{ours}; of its CPU time {cpu}; of DeepSpeedCPUAdam's time {deepspeed}. Which fused kernel is first changes "
        "from run to run.",
        "- **Goals that were missed**, in some runs or in all:",
    ]
    for goal in GOALS["cpu"]:
        judged = {tuple(map(id, runs)): (runs[0], goal.verdict(runs)) for runs in report.grouped(steps())}
        missed = [
            f"{short(case)}: {verdict.replace('**', '')}"
            for case, verdict in judged.values()
            if "met in" in verdict or "NOT met" in verdict
        ]
        if missed:
            lines.append(f"    - {goal.title}: {'; '.join(missed)}")
    return "\n".join(lines)


def fewer_bits() -> str:
    """Return the time of a step with fewer bits as a multiple of a float32 step's."""
    each = {
        name: ", ".join(
            f"{ratio(name, 'to_ours', n, (shape,))} on {SHORT[shape]} with {THREADS[n]}"
            for n in THREADS
            for shape in LARGE
        )
        for name in (EIGHT_BITS, SIXTEEN_BITS)
    }
    return (
        "A step with 8-bit moments takes, as a multiple of the float32 step's time and over all runs, "
        f"{each[EIGHT_BITS]}. A step with 16-bit moments takes {each[SIXTEEN_BITS]}."
    )


def unobserved() -> str:
    """Return the time of 8-bit steps with unobserved elements as a multiple of one without."""
    few, half = (ratio(name, "to_dense", 1, tuple(SHORT)) for name in (FEW_UNOBSERVED, HALF_UNOBSERVED))
    return (
        f"Where elements have never had a gradient, an 8-bit step takes {few} times (1 element in 256) and {half} "
        "times (half of them) the CPU time of one where all have had one."
    )


def training() -> str:
    """Return the time of a whole training step with ADOPT over one with AdamW."""
    found = results.read_all(results.FOLDER)
    trained = [c["rows"] for r in found if (r["benchmark"], r["device"]) == ("train", "cpu") for c in r["cases"]]
    return tables.medians([rows[OURS] for rows in trained if BASELINE in rows], "to_adamw")


def in_short() -> str:
    """Return the table of the README on a step's time and the bytes of the state."""
    dates = sorted(result["date"] for result in steps())
    machines = [result["environment"] for result in steps()]
    hardware = conditions.listed(f"{one['hardware']}, {one['cores']} cores" for one in machines)
    where = f"{hardware}, {dates[0]} to {dates[-1]}"
    eight = [ratio(EIGHT_BITS, "to_ours", n) for n in THREADS]
    rows = [
        ["a step of GPT-2 124M", " and ".join(f"{ratio(OURS, 'to_adamw', n)}" for n in THREADS), "AdamW fused's time"],
        ["a step with 8-bit moments", " and ".join(eight), "a float32 step's time"],
        ["a whole training step of GPT-2", training(), "the time with AdamW fused"],
        ["bytes a parameter, float32 moments", "8", "AdamW's 8"],
        ["bytes a parameter, 8-bit moments, GPT-2 124M", launches.in_8_bits("gpt2"), "AdamW's 8"],
        ["bytes a parameter, 8-bit moments, Llama 7B", launches.in_8_bits("llama-7b"), "AdamW's 8"],
        ["a step on a GPU", "not measured", ""],
    ]
    conditions_of_all = (
        f"Ratios of times with one thread and with two: {len(steps())} runs on {where}; bytes are counted."
    )
    return f"{pages.table(['what', 'figure', 'against'], rows)}\n\n{conditions_of_all}"


def goals(device: str) -> str:
    """Return the goals of a step."""
    return "; ".join(goal.title for goal in GOALS[device])


TEXTS: dict[str, Callable[[], str]] = {
    "speed in words": words,
    "fewer bits in words": fewer_bits,
    "unobserved in words": unobserved,
    "speed of training": training,
    "goals on a CPU": lambda: goals("cpu"),
    "goals on a GPU": lambda: goals("cuda"),
    "speed and memory": in_short,
}
