"""GPT-2 pretraining with a large and a small batch, AdamW and ADOPT, three seeds; loss spikes counted by a rule.

python -m experiments gpt2_curves            # offline: the recipe's text and tokenizer, a smaller model, minutes
python -m experiments gpt2_curves --full     # the paper's: 124M, OpenWebText, 480 and 96 sequences of 1,024 tokens

Both sizes are examples/gpt2_pretraining with other options, so learning rate, schedule, decay and clipping are those of
its configs, the same for all optimizers, as in the paper; a batch is five times the other. AdamW has nanoGPT's beta2 =
0.95, ADOPT its default, 0.9999, and, since a short run is over before that forgets anything, 0.999 as well (what an
independent benchmark chose, arXiv 2509.01440). ADOPTW is this package's default, which warms beta2 up instead.

The rule of spikes is in adopt_hf/commands/compare/spikes.py: the mean of the last 10 logged losses is above its lowest
value so far by more than
0.5 nats and by more than 8 of its standard errors. AdamW is stable here; `instability` is where it is not.

The authors' GPT-2 is nanoGPT's: it has no biases, where transformers' has them, and 600,000 steps of schedule.

`--full` is one process that accumulates the batch (480 = 12 x 40); one run is 100,000 steps. With more GPUs use the
recipe itself, which saves checkpoints: configs/gpt2_124m*.yaml, four of them.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from adopt_hf.commands.compare.spikes import RULE, smoothed, spikes
from experiments.harness import pages
from experiments.harness.claims import Claim, Verdict
from experiments.harness.paired import Difference, difference, interval, verdict
from experiments.harness.runs import InputError, Part
from experiments.paper import gpt2

NAME = "gpt2_curves"
TITLE = "GPT-2 with a large and a small batch"
SEEDS = (0, 1, 2)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"optim": "adamw_torch", "adam_beta2": 0.95},
    "ADOPT": {"optim": "adopt", "optim_args": gpt2.PAPERS},
    "ADOPT, beta2=0.999": {"optim": "adopt", "optim_args": f"{gpt2.PAPERS},beta2=0.999"},
    "ADOPTW, beta2_warmup=1": {"optim": "adopt", "optim_args": "beta2_warmup=1"},
}
COLOURS = {
    **{"AdamW": "#000000", "ADOPT": "#2c5f8a"},
    **{"ADOPT, beta2=0.999": "#c0392b", "ADOPTW, beta2_warmup=1": "#2f8f4e"},
}
BATCHES = ("large", "small")
# What both sizes have in common with the recipe is in its configs; the rest by name, as its command line takes it.
QUICK = {"max_steps": 1200, "warmup_steps": 50, "eval_steps": 100, "n_embd": 64, "block_size": 64}
FULL = {"max_steps": 100_000, "warmup_steps": 2000, "eval_steps": 1000, "n_embd": 768, "block_size": 1024}
# (sequences at a time, accumulated)
BATCH = {True: {"large": (20, 1), "small": (4, 1)}, False: {"large": (12, 40), "small": (12, 8)}}
NOTE = (
    "Every optimizer has the learning rate, schedule, decay and clipping of examples/gpt2_pretraining; AdamW has beta2 "
    "= 0.95, ADOPT 0.9999 unless it says otherwise, ADOPTW the running mean of the squares to begin with. One batch is "
    "five times the other. Losses are means with 95 % intervals over the seeds; a verdict is of the differences in "
    "pairs. The small batch has 256 tokens a step, and what its row shows is the memory of beta2: see ADOPT with 0.999 "
    "and ADOPTW. On spikes: reproduced if every run of AdamW with the small batch has one and none of ADOPT's, "
    f"contradicted if it is the other way round; {RULE}."
)


def parts(quick: bool) -> list[Part]:
    size = QUICK if quick else FULL
    return [
        Part(
            NAME,
            f"{batch}-{optimizer.lower().replace(', beta2=', '-').replace(', beta2_', '-').replace('=', '-')}-{seed}",
            {"quick": quick, "optimizer": optimizer, "batch": batch, "seed": seed, **size},
        )
        for seed in SEEDS
        for batch in BATCHES
        for optimizer in OPTIMIZERS
    ]


def one(quick: bool, optimizer: str, batch: str, seed: int, **size: int) -> dict[str, Any]:
    """Train once; see gpt2.train for what comes back. `size` has the names of QUICK. Raises InputError."""
    for name, value, known in (("optimizer", optimizer, OPTIMIZERS), ("batch", batch, BATCHES)):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    at_a_time, accumulated = BATCH[quick][batch]
    options = (gpt2.QUICK if quick else {}) | size | OPTIMIZERS[optimizer]
    options |= {"seed": seed, "eval_strategy": "steps"}
    options |= {"per_device_train_batch_size": at_a_time, "gradient_accumulation_steps": accumulated}
    return gpt2.train(gpt2.STDLIB if quick else gpt2.RECIPE / "configs" / "gpt2_124m.yaml", options)


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    where = "section 5, GPT-2 pretraining (learning curves, no number in the text)"
    warm = difference(*(_by_seed(rows, name, "small") for name in ("ADOPTW, beta2_warmup=1", "ADOPT")))
    spiking = "; ".join(_spike_text(rows, name, "small") for name in OPTIMIZERS if _of(rows, name, "small"))
    return [
        Claim(
            "With the small batch Adam's loss spikes and training fails; ADOPT's is stable",
            where,
            spiking,
            _conditions(rows),
            _spike_verdict(rows),
        ),
        *(
            Claim(
                f"With the {batch} batch ADOPT ends at a lower held-out loss than Adam",
                where,
                "less AdamW: " + "; ".join(f"{name} {one_.text()}" for name, one_ in found.items()),
                f"{_conditions(rows)}; the verdict is of ADOPT with its default beta2",
                verdict(found["ADOPT"]),
            )
            for batch, found in ((batch, _less_adamw(rows, batch)) for batch in BATCHES)
        ),
        Claim(
            "What ADOPT loses with the small batch is beta2's memory: ADOPTW ends lower than ADOPT there",
            "not in the paper",
            f"ADOPTW less ADOPT: {warm.text()}",
            _conditions(rows),
            verdict(warm),
        ),
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["batch", "optimizer", "held-out loss", "training loss, last 100", "spikes", "highest rise", "counts above"]
    lines = []
    for batch in BATCHES:
        for name in OPTIMIZERS:
            found = _of(rows, name, batch)
            if not found:
                continue
            counted = [spikes(row["losses"]) for row in found]
            cells = (
                f"{batch}, {found[0]['sequences']} sequences",
                name,
                interval(_losses(rows, name, batch), ".3f"),
                interval([_last(row["losses"]) for row in found], ".3f"),
                ", ".join(str(one.count) for one in counted),
                f"{max(one.highest for one in counted):.2f}",
                f"{min(one.bar for one in counted):.2f}",
            )
            lines.append(cells)
    said = f"{_conditions(rows)}. Mean and 95 % interval over the seeds, nats per token. Spikes: {RULE}."
    return f"{pages.table(head, lines)}\n\n{said}"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the mean over the seeds of the smoothed training losses and of the held-out losses, and the seeds' range."""
    figure = Figure(figsize=(12, 7.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", squeeze=False)
    for column, batch in enumerate(BATCHES):
        for name, colour in COLOURS.items():
            found = _of(rows, name, batch)
            if not found:
                continue
            training = [smoothed(row["losses"]) for row in found]
            held_out = [[math.nan if loss is None else loss for loss in row["eval_losses"]] for row in found]
            steps = found[0]["steps"][len(found[0]["steps"]) - len(training[0]) :]
            for panel, x, runs in (
                (panels[0][column], steps, training),
                (panels[1][column], found[0]["eval_steps"], held_out),
            ):
                at = list(zip(*runs, strict=True))
                panel.plot(x, [fmean(values) for values in at], color=colour, linewidth=1.3, label=name)
                low, high = ([pick(values) for values in at] for pick in (min, max))
                panel.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        panels[0][column].set_title(f"{batch} batch")
        panels[1][column].set_xlabel("step")
        for row in range(2):
            # The first steps would take the room of the rest.
            ends = [line.get_ydata() for line in panels[row][column].get_lines()]
            finite = [y for ys in ends for y in ys[len(ys) // 6 :] if math.isfinite(y)]
            if finite:
                panels[row][column].set_ylim(min(finite) - 0.1, max(finite) + 0.1)
    panels[0][0].set_ylabel("training loss, mean of 10\n(nats per token)")
    panels[1][0].set_ylabel("held-out loss\n(nats per token)")
    panels[0][1].legend(frameon=False)
    for axes in panels.flat:
        axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def _of(rows: Sequence[dict[str, Any]], optimizer: str, batch: str) -> list[dict[str, Any]]:
    return [
        row["result"] for row in rows if row["settings"]["optimizer"] == optimizer and row["settings"]["batch"] == batch
    ]


def _last(losses: Sequence[float | None]) -> float:
    return fmean(math.inf if loss is None else loss for loss in losses[-100:])


def _losses(rows: Sequence[dict[str, Any]], optimizer: str, batch: str) -> list[float]:
    """Held-out losses at the end, infinite where a run diverged."""
    return [math.inf if row["eval_loss"] is None else row["eval_loss"] for row in _of(rows, optimizer, batch)]


def _by_seed(rows: Sequence[dict[str, Any]], optimizer: str, batch: str) -> dict[int, float]:
    wanted = [r["settings"] for r in rows if (r["settings"]["optimizer"], r["settings"]["batch"]) == (optimizer, batch)]
    return {s["seed"]: loss for s, loss in zip(wanted, _losses(rows, optimizer, batch), strict=True)}


def _less_adamw(rows: Sequence[dict[str, Any]], batch: str) -> dict[str, Difference]:
    """Return what each optimizer's loss is above AdamW's, of those that have been run."""
    adamw = _by_seed(rows, "AdamW", batch)
    found = {name: difference(_by_seed(rows, name, batch), adamw) for name in OPTIMIZERS if name != "AdamW"}
    return {name: one_ for name, one_ in found.items() if one_.n or name == "ADOPT"}


def _spike_text(rows: Sequence[dict[str, Any]], optimizer: str, batch: str) -> str:
    counted = [spikes(row["losses"]) for row in _of(rows, optimizer, batch)]
    return (
        f"{optimizer} {sum(one.count for one in counted)} spikes in {len(counted)} runs, highest rise "
        f"{max(one.highest for one in counted):.2f} nats, counted from {min(one.bar for one in counted):.2f}"
    )


def _spike_verdict(rows: Sequence[dict[str, Any]]) -> Verdict:
    """Judge the small batch: reproduced if all runs of AdamW spike and none of ADOPT's, contradicted in reverse."""
    adam, adopt = ([spikes(row["losses"]).count for row in _of(rows, name, "small")] for name in ("AdamW", "ADOPT"))
    if all(adam) and not any(adopt):
        return "reproduced"
    return "contradicted" if all(adopt) and not any(adam) else "not at this scale"


def _conditions(rows: Sequence[dict[str, Any]]) -> str:
    result, sizes = rows[0]["result"], {batch: _of(rows, "ADOPT", batch)[0]["sequences"] for batch in BATCHES}
    seeds = sorted({row["settings"]["seed"] for row in rows})
    return (
        f"GPT-2 of {result['parameters']:,} parameters, {result['steps'][-1]} steps of {sizes['large']} and "
        f"{sizes['small']} sequences of {rows[0]['settings']['block_size']}, seeds {', '.join(map(str, seeds))}"
    )
