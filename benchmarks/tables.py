"""Results as Markdown, for the terminal and for the docs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.goals import GOALS
from benchmarks.peers import PEERS
from benchmarks.shapes import SHAPES, elements

DASH = "-"
Result = Mapping[str, Any]
Case = Mapping[str, Any]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; `header` and every row have as many cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float | None, form: str = "{:.2f}") -> str:
    """Formatted, or a dash."""
    return DASH if value is None else form.format(value)


def median(row: Mapping[str, Any], key: str, form: str = "{:.2f}") -> str:
    """That of the quartiles under `key`, or a dash."""
    found = row.get(key)
    return DASH if found is None else form.format(found["median"])


def mib(value: float | None) -> str:
    """Bytes in MiB."""
    return DASH if value is None else f"{value / 2**20:.1f}"


def conditions(result: Result) -> str:
    """What the numbers belong to, as a sentence or two."""
    env = result["environment"]
    machine = f"{env['cpu']}, {env['cores']} cores"
    if result["device"] == "cuda":
        machine = f"{env['hardware']} ({env['gpu_memory_gib']} GiB, CUDA {env['cuda']}), {machine}"
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items() if version)
    load = env.get("load")
    return (
        f"Measured on {result['date']} on {machine}; Python {env['python']}, {versions}; seed {result['seed']}, "
        f"{result['rounds']} rounds, OMP_WAIT_POLICY {env.get('omp_wait_policy') or 'not set'}, "
        f"load of the machine before the start {DASH if load is None else load}, commit {env.get('commit') or DASH}. "
        f"Command: `{result['command']}`."
    )


def case_title(case: Case) -> str:
    """What is stepped over, and how."""
    title = f"{shape_title(case['shape'], case['tensors'], case['elements'])}, {case['dtype']}"
    return title if case["device"] == "cuda" else f"{title}, {threads(case)}"


def shape_title(shape: str, tensors: int, total: int) -> str:
    """A shape with its size."""
    title = SHAPES[shape].title if shape in SHAPES else shape
    return f"{title}: {total / 1e6:,.1f}M in {tensors} tensor{'s' * (tensors != 1)}"


def threads(case: Case) -> str:
    """How many, in words."""
    return f"{case['threads']} thread{'s' * (case['threads'] != 1)}"


def step_table(case: Case, device: str) -> str:
    """The rows of one case, the floor first."""
    if device == "cuda":
        rate = case["copy_rate"]
        header = (
            "optimizer|ms|x AdamW fused|x adopt_hf|% of copy rate|temporaries, MiB|launches a group|host ms|wall ms"
        )
        floor = [f"floor: a copy, {number(rate and rate / 1e9, '{:.0f}')} GB/s", floor_ms(case), *[DASH] * 7]
    else:
        header = (
            "optimizer|ms|x AdamW fused|x adopt_hf|x stream|CPU time, x AdamW fused|temporaries, MiB|launches|host ms"
        )
        stream = case["stream"] or {"why": "not measured"}
        name = "floor: stream kernel" + (f" ({stream['why']})" if stream.get("why") else "")
        floor = [name, median(stream, "ms", "{:.1f}"), *[DASH] * 7]
    rows = [floor, *(_step_row(name, row, device) for name, row in case["rows"].items())]
    return markdown(header.split("|"), rows)


def floor_ms(case: Case) -> str:
    """The time in which a copy moves the bytes of the case."""
    return number(case["copy_rate"] and 1e3 * case["bytes"] / case["copy_rate"])


def _step_row(name: str, row: Mapping[str, Any], device: str) -> list[str]:
    title = PEERS[name].title if name in PEERS else name
    if row["why"]:
        return [title, row["why"], *[DASH] * 7]
    head = [title, median(row, "ms", "{:.2f}"), median(row, "to_adamw"), median(row, "to_ours")]
    own = mib(row.get("temporaries_bytes"))
    if device == "cuda":
        share = row.get("copy_share")
        return [
            *head,
            number(share and 100 * share, "{:.0f}"),
            own,
            number(row.get("launches"), "{:g}"),
            median(row, "host_ms"),
            median(row, "wall_ms"),
        ]
    return [*head, median(row, "to_floor"), median(row, "cpu_to_adamw"), own, DASH, median(row, "host_ms")]


def notes(result: Result) -> str:
    """What is to be known of the rows, once each."""
    seen: dict[str, list[str]] = {}
    for case in result["cases"]:
        for name, row in case["rows"].items():
            title = PEERS[name].title.strip("*") if name in PEERS else name
            own = [PEERS[name].note, PEERS[name].bf16_note * (case["dtype"] == "bf16")] if name in PEERS else []
            for note in [*(note for note in own if note and not row["why"]), *row.get("notes", [])]:
                if title not in seen.setdefault(note, []):
                    seen[note].append(title)
    return "\n".join(f"- {'; '.join(titles)}: {note}" for note, titles in seen.items())


def goals_table(device: str, cases: Sequence[Case | str]) -> str:
    """Every goal of every case; a case that nobody measured is its title alone."""
    goals = GOALS[device]
    rows = [
        [case_title(case), *(goal.verdict(case) for goal in goals)]
        if isinstance(case, Mapping)
        else [case, *["not measured"] * len(goals)]
        for case in cases
    ]
    return markdown(["case", *(goal.title for goal in goals)], rows)


def unmeasured(device: str, dtypes: Sequence[str], cases: Sequence[Case] = ()) -> list[str]:
    """The titles of the shapes and dtypes of a device that are not among `cases`."""
    done = {(case["shape"], case["dtype"]) for case in cases}
    return [
        f"{shape_title(name, len(shape.sizes), elements(shape.sizes))}, {dtype}"
        for name, shape in SHAPES.items()
        if device in shape.devices
        for dtype in dtypes
        if (name, dtype) not in done
    ]


def train_table(case: Case) -> str:
    """Whole training steps with each optimizer."""
    header = ["optimizer", "tokens/s", "ms a step", "x AdamW fused", "peak memory, MiB"]
    rows = []
    for name, row in case["rows"].items():
        title = PEERS[name].title if name in PEERS else name
        if row["why"]:
            rows.append([title, row["why"], DASH, DASH, DASH])
            continue
        peak = row.get("peak_bytes")
        rows.append(
            [
                title,
                median(row, "tokens_per_s", "{:,.0f}"),
                median(row, "ms", "{:,.0f}"),
                median(row, "to_adamw", "{:.3f}"),
                DASH if peak is None else f"{peak / 2**20:,.0f}",
            ]
        )
    return markdown(header, rows)


def train_title(result: Result, case: Case) -> str:
    """The model, the batch and how it is computed."""
    tokens = f"{result['batch']} x {result['length']} tokens a step"
    return f"{result['model']}, {tokens}, {result['precision']}, {threads(case)}"
