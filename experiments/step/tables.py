"""Results as Markdown, for the terminal and for the docs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.harness.machine import listed
from experiments.harness.pages import table
from experiments.step.goals import GOALS
from experiments.step.peers import PEERS
from experiments.step.shapes import SHAPES, elements

DASH = "-"
Result = Mapping[str, Any]
Case = Mapping[str, Any]


def span(values: Iterable[float | None], form: str = "{:.2f}") -> str:
    """Return the range over the runs that have a value: one number if they agree, a dash if there is none."""
    found = sorted(value for value in values if value is not None)
    if not found:
        return DASH
    low, high = form.format(found[0]), form.format(found[-1])
    return low if low == high else f"{low} to {high}"


def runs(results: Sequence[Result]) -> str:
    """Return the conditions of the runs: a table of the differences, and a sentence on the rest."""
    head = ["date", "commit", "rounds", "load before", "OMP_WAIT_POLICY", "command"]
    rows = []
    for result in results:
        env = result["environment"]
        load = env.get("load")
        rows.append(
            [
                result["date"],
                env.get("commit") or DASH,
                str(result["rounds"]),
                DASH if load is None else str(load),
                env.get("omp_wait_policy") or "not set",
                f"`{result['command']}`",
            ]
        )
    machines = listed(machine(result) for result in results)
    pythons = listed(result["environment"]["python"] for result in results)
    names = dict.fromkeys(name for result in results for name in result["environment"]["versions"])
    versions = {name: listed(result["environment"]["versions"].get(name) for result in results) for name in names}
    of = "".join(f", {name} {number}" for name, number in versions.items() if number)
    seeds = listed(result["seed"] for result in results)
    return (
        f"{table(head, rows)}\n\nOn {machines}; Python {pythons}{of}; seed {seeds}. A commit with + had changes "
        "that were not committed. The load is that of the machine before the start: other work beside the run."
    )


def machine(result: Result) -> str:
    """Return the processor, and the GPU if it ran there."""
    env = result["environment"]
    cpu = f"{env['cpu']}, {env['cores']} cores"
    if result["device"] == "cuda":
        return f"{env['hardware']} ({env['gpu_memory_gib']} GiB, CUDA {env['cuda']}), {cpu}"
    return cpu


def case_title(case: Case) -> str:
    """Return the title of a case: its shape, dtype and threads."""
    title = f"{shape_title(case['shape'], case['tensors'], case['elements'])}, {case['dtype']}"
    return title if case["device"] == "cuda" else f"{title}, {threads(case)}"


def shape_title(shape: str, tensors: int, total: int) -> str:
    """Return a shape with its size."""
    title = SHAPES[shape].title if shape in SHAPES else shape
    return f"{title}: {total / 1e6:,.1f}M in {tensors} tensor{'s' * (tensors != 1)}"


def threads(case: Case) -> str:
    """Return the number of threads in words."""
    return f"{case['threads']} thread{'s' * (case['threads'] != 1)}"


def step_table(cases: Sequence[Case], device: str) -> str:
    """Return the rows of one case, the floor first. For several runs of the case, return the range over them."""
    if device == "cuda":
        rates = span((case["copy_rate"] and case["copy_rate"] / 1e9 for case in cases), "{:.0f}")
        header = (
            "optimizer|ms|x AdamW fused|x adopt_hf|% of copy rate|temporaries, MiB|launches a group|host ms|wall ms"
        )
        floor = [f"floor: a copy, {rates} GB/s", span(map(floor_ms, cases)), *[DASH] * 7]
    else:
        header = (
            "optimizer|ms|x AdamW fused|x adopt_hf|x stream|CPU time, x AdamW fused|temporaries, MiB|launches|host ms"
        )
        streams = [case["stream"] or {"why": "not measured"} for case in cases]
        why = next((stream["why"] for stream in streams if stream.get("why")), "")
        name = "floor: stream kernel" + (f" ({why})" if why and all(s.get("why") for s in streams) else "")
        floor = [name, medians(streams, "ms", "{:.1f}"), *[DASH] * 7]
    names = dict.fromkeys(name for case in cases for name in case["rows"])
    rows = [_step_row(name, [case["rows"][name] for case in cases if name in case["rows"]], device) for name in names]
    head = header.split("|")
    if len(cases) == 1:
        return table(head, [floor, *rows])
    counts = ["", *(str(sum(not case["rows"].get(name, {"why": "no"})["why"] for case in cases)) for name in names)]
    return table([head[0], "runs", *head[1:]], [[r[0], n, *r[1:]] for r, n in zip([floor, *rows], counts, strict=True)])


def floor_ms(case: Case) -> float | None:
    """Return the time in which a copy moves the bytes of the case."""
    return case["copy_rate"] and 1e3 * case["bytes"] / case["copy_rate"]


def medians(rows: Sequence[Mapping[str, Any]], key: str, form: str = "{:.2f}") -> str:
    """Return the range of the medians of the quartiles under `key`."""
    return span((row[key]["median"] for row in rows if row.get(key) is not None), form)


def _step_row(name: str, all_rows: Sequence[Mapping[str, Any]], device: str) -> list[str]:
    title = PEERS[name].title if name in PEERS else name
    rows = [row for row in all_rows if not row["why"]]
    if not rows:
        return [title, all_rows[-1]["why"], *[DASH] * 7]
    head = [title, medians(rows, "ms"), medians(rows, "to_adamw"), medians(rows, "to_ours")]
    own = span((row["temporaries_bytes"] / 2**20 for row in rows if row.get("temporaries_bytes") is not None), "{:.1f}")
    if device == "cuda":
        return [
            *head,
            span((100 * row["copy_share"] for row in rows if row.get("copy_share")), "{:.0f}"),
            own,
            span((row.get("launches") for row in rows), "{:g}"),
            medians(rows, "host_ms"),
            medians(rows, "wall_ms"),
        ]
    return [*head, medians(rows, "to_floor"), medians(rows, "cpu_to_adamw"), own, DASH, medians(rows, "host_ms")]


def notes(cases: Sequence[Case]) -> str:
    """Return the notes on the rows, once each."""
    seen: dict[str, list[str]] = {}
    for case in cases:
        for name, row in case["rows"].items():
            title = PEERS[name].title.strip("*") if name in PEERS else name
            own = [PEERS[name].note, PEERS[name].bf16_note * (case["dtype"] == "bf16")] if name in PEERS else []
            for note in [*(note for note in own if note and not row["why"]), *row.get("notes", [])]:
                if title not in seen.setdefault(note, []):
                    seen[note].append(title)
    return "\n".join(f"- {'; '.join(titles)}: {note}" for note, titles in seen.items())


def goals_table(device: str, cases: Sequence[Sequence[Case] | str]) -> str:
    """Return every goal of every case with its runs. A case that was not measured is given by its title."""
    goals = GOALS[device]
    rows = [
        [case, *["not measured"] * len(goals)]
        if isinstance(case, str)
        else [case_title(case[0]), *(goal.verdict(case) for goal in goals)]
        for case in cases
    ]
    return table(["case", *(goal.title for goal in goals)], rows)


def unmeasured(device: str, dtypes: Sequence[str], cases: Sequence[Case] = ()) -> list[str]:
    """Return the titles of the shapes and dtypes of a device that are not among `cases`."""
    done = {(case["shape"], case["dtype"]) for case in cases}
    return [
        f"{shape_title(name, len(shape.sizes), elements(shape.sizes))}, {dtype}"
        for name, shape in SHAPES.items()
        if device in shape.devices
        for dtype in dtypes
        if (name, dtype) not in done
    ]


def train_table(case: Case) -> str:
    """Return the table of whole training steps with each optimizer."""
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
                medians([row], "tokens_per_s", "{:,.0f}"),
                medians([row], "ms", "{:,.0f}"),
                medians([row], "to_adamw", "{:.3f}"),
                DASH if peak is None else f"{peak / 2**20:,.0f}",
            ]
        )
    return table(header, rows)


def train_title(result: Result, case: Case) -> str:
    """Return the model, the batch and the precision."""
    tokens = f"{result['batch']} x {result['length']} tokens a step"
    return f"{result['model']}, {tokens}, {result['precision']}, {threads(case)}"
