"""The cost of fewer bits: final held-out loss and bytes of bfloat16 parameters and of moments in 16 and 8 bits.

python -m experiments low_bits                # the runs that have not been done, then the report
python -m experiments low_bits --report_only

The recipes of examples/gpt2_pretraining and examples/llama_instruct (all weights), offline, on the same tokens, one
thread a run, with several seeds. A run is a file of runs/low_bits; finished ones are not done again. The report is a
table between the markers of docs/benchmarks.md and the plot docs/low_bits.png, from the rows kept in
experiments/results/low_bits.jsonl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.harness import command, pages
from experiments.harness import runs as parts
from experiments.harness.machine import ROOT
from experiments.harness.runs import Part

FOLDER = Path("runs/low_bits")
RESULTS = parts.RESULTS / "low_bits.jsonl"
PAGE, PLOT = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "low_bits.png"
PEERS = Path(sys.prefix) / "low_bit_peers"  # see the Makefile
SEEDS = (0, 1, 2)

BF16, STOCHASTIC = ("--dtype", "bfloat16"), "bf16_stochastic_round=true"
VARIANTS = {  # options of the recipes; with a package, only where it can be found
    "AdamW": ("--optim", "adamw_torch"),
    "AdamW, 8 bits (torchao)": ("--optim", "adamw_torch_8bit"),
    "AdamW, 8 bits (bitsandbytes)": ("--optim", "adamw_8bit"),
    "ADOPT": ("--optim", "adopt"),
    "ADOPT, 16 bits": ("--optim", "adopt", "--optim_args", "state_bits=16"),
    "ADOPT, 8 bits": ("--optim", "adopt_8bit"),
    "ADOPT, bf16 parameters": ("--optim", "adopt", *BF16),
    "ADOPT, bf16 parameters, Kahan": ("--optim", "adopt", *BF16),
    "ADOPT, bf16 parameters, stochastic": ("--optim", "adopt", *BF16, "--optim_args", STOCHASTIC),
    "ADOPT, bf16 parameters, stochastic, 8 bits": ("--optim", "adopt_8bit", *BF16, "--optim_args", STOCHASTIC),
}
NEEDS = {"AdamW, 8 bits (torchao)": "torchao", "AdamW, 8 bits (bitsandbytes)": "bitsandbytes"}
BY = {"ADOPT, bf16 parameters, Kahan": ("-m", "experiments.low_bits.kahan")}  # what runs the recipe's script
RECIPES = {  # title, script, and options that make a run one of about a minute on one thread
    "gpt2": (
        "GPT-2 from scratch",
        "gpt2_pretraining/train.py",
        (
            *("--config", "configs/stdlib.yaml", "--max_steps", "400", "--sample_tokens", "0", "--warmup_steps", "50"),
            *("--optim_args", "beta2_warmup=false"),
        ),
    ),
    "llama": (
        "LLaMA on instructions",
        "llama_instruct/train.py",
        (
            *("--config", "configs/stdlib.yaml", "--max_steps", "200", "--per_device_train_batch_size", "8"),
            *("--max_eval_records", "400", "--evaluate", "false", "--eval_on_start", "false", "--chat_prompt", ""),
            *("--use_cpu", "true", "--optim_args", "beta2_warmup=1.0"),
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report_only", action="store_true")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="Runs at once, with one thread each.")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--max_steps", type=int, help="Steps of each run (default: each recipe's own).")
    parser.add_argument("--results", type=Path, default=RESULTS, help="File of JSON lines for the report.")
    parser.add_argument("--page", type=Path, default=PAGE, help="Page with the markers of the report.")
    parser.add_argument("--plot", type=Path, default=PLOT)
    quick = {
        "folder": command.TRIED,
        "results": command.TRIED / "low_bits.jsonl",
        "plot": command.TRIED / "low_bits.png",
    }
    args = command.parse(parser, max_steps=20, page=None, **quick)
    if not args.report_only:
        rows = parts.run(wanted(args), one, args.folder, args.workers)
        args.results.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = parts.lines(args.results)
    if args.page is not None:
        pages.write(args.page, {"low bits": report(rows)})
    draw(rows, args.plot)
    print(table(rows))


def wanted(args: argparse.Namespace) -> Iterator[Part]:
    for recipe in args.recipes:
        for seed in args.seeds:
            for variant in args.variants:
                if variant in NEEDS and not found(NEEDS[variant]):
                    print(f"{variant}: left out, {NEEDS[variant]} is not installed", file=sys.stderr)
                    continue
                name = f"{recipe}-{variant.replace(' ', '_').replace(',', '').strip('()')}-{seed}"
                settings = {"recipe": recipe, "variant": variant, "seed": seed, "max_steps": args.max_steps}
                yield Part("low_bits", name, settings)


def found(package: str) -> bool:
    return find_spec(package) is not None or (PEERS / package).is_dir()


def one(recipe: str, variant: str, seed: int, max_steps: int | None) -> dict[str, Any]:
    """Run a recipe's script once. Return its last held-out loss, and bytes."""
    _, script, options = RECIPES[recipe]
    path = ROOT / "examples" / script
    environment = os.environ | parts.THREADS | {"HF_HUB_OFFLINE": "1"}
    paths = (os.environ.get("PYTHONPATH"), str(PEERS) if variant in NEEDS else str(ROOT) if variant in BY else None)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    words = [word.replace("configs/", f"{path.parent}/configs/") for word in joined([*options, *VARIANTS[variant]])]
    steps = max_steps or int(words[words.index("--max_steps") + 1])
    words += ["--max_steps", str(steps), "--eval_steps", str(steps), "--save_steps", str(steps), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *BY.get(variant, ()), str(path), *words, "--output_dir", f"{folder}/run"]
        process = subprocess.Popen(
            [*command, "--report_to", "none", "--disable_tqdm", "true"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"{variant} on {recipe}, seed {seed}:\n{output[-3000:]}")
        checkpoint = Path(folder) / "run" / f"checkpoint-{steps}"
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        if variant in NEEDS and str(PEERS) not in sys.path:
            sys.path.append(str(PEERS))  # whose tensors the file has
        state = torch.load(checkpoint / "optimizer.pt", weights_only=variant not in NEEDS)["state"]
        return {
            "eval_loss": [entry["eval_loss"] for entry in history if "eval_loss" in entry][-1],
            "state_bytes": sum(size(t) for moments in state.values() for k, t in moments.items() if k != "step"),
            "parameters_bytes": (checkpoint / "model.safetensors").stat().st_size,
            "peak_mib": round(usage.ru_maxrss / 1024),
            "steps": steps,
        }


def joined(words: Sequence[str]) -> list[str]:
    """Return the options with all `--optim_args` in one. AdamW gets none of them."""
    kept: list[str] = []
    optim_args: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--optim_args":
            optim_args.append(next(rest))
        else:
            kept.append(word)
    adopt = any(word.startswith("adopt") for word in kept)
    return [*kept, "--optim_args", ",".join(optim_args)] if adopt and optim_args else kept


def size(t: Any) -> int:
    """Return the bytes of a tensor, or 0 for another object. Of torchao's 8-bit tensors, the parts are counted."""
    if isinstance(t, dict):  # bitsandbytes has all but `step` in one
        return sum(size(value) for name, value in t.items() if not name.startswith("qmap"))
    if not isinstance(t, torch.Tensor):
        return 0
    names = getattr(t, "tensor_attrs", None)
    return sum(size(getattr(t, name)) for name in names) if names else t.numel() * t.element_size()


# -- the report --------------------------------------------------------------------------------------------------------


def report(rows: Sequence[dict[str, Any]]) -> str:
    last = rows[-1]["conditions"]
    seeds = ", ".join(str(seed) for seed in sorted({row["settings"]["seed"] for row in rows}))
    steps = ", ".join(
        f"{RECIPES[recipe][0]}: {found[0]['result']['steps']} steps"
        for recipe in RECIPES
        if (found := of(rows, recipe, None))
    )
    return (
        f"{table(rows)}\n\n![Held-out loss with fewer bits](low_bits.png)\n\n"
        f"Held-out loss, mean over seeds {seeds} and half their range, and the difference from ADOPT with float32 "
        f"moments and parameters (AdamW's from AdamW's). {steps}. Bytes a parameter of both moments together, all "
        "tensors (embeddings and small ones keep float32), and of the parameters; peak memory is of the whole process, "
        f"most of it Python's libraries. Measured on {last['date']} on {last['processor']}, one thread a run, torch "
        f"{last['torch']}, transformers {last['transformers']}, commit {last['commit']}."
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    tables = []
    for recipe, (title, *_) in RECIPES.items():
        if not of(rows, recipe, None):
            continue
        head = (title, "held-out loss", "difference", "moments, bytes", "parameters, bytes", "peak, MiB")
        cells = []
        for variant in VARIANTS:
            found = of(rows, recipe, variant)
            twin = of(rows, recipe, variant.split(",")[0])
            if not found or not twin:
                continue
            elements = twin[0]["result"]["parameters_bytes"] / 4
            difference = statistics.fmean(losses(found)) - statistics.fmean(losses(twin))
            result = found[0]["result"]
            row = (
                variant,
                f"{statistics.fmean(losses(found)):.3f} ± {half_range(found):.3f}",
                "" if variant == variant.split(",")[0] else f"{difference:+.3f}",
                f"{result['state_bytes'] / elements:.2f}",
                f"{result['parameters_bytes'] / elements:.1f}",
                f"{statistics.median(one['result']['peak_mib'] for one in found):.0f}",
            )
            cells.append(row)
        tables.append(pages.table(head, cells, numbers=True))
    return "\n\n".join(tables)


def of(rows: Sequence[dict[str, Any]], recipe: str, variant: str | None) -> list[dict[str, Any]]:
    return [
        row for row in rows if row["settings"]["recipe"] == recipe and variant in (None, row["settings"]["variant"])
    ]


def losses(rows: Sequence[dict[str, Any]]) -> list[float]:
    return [row["result"]["eval_loss"] for row in rows]


def half_range(rows: Sequence[dict[str, Any]]) -> float:
    return (max(losses(rows)) - min(losses(rows))) / 2


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    recipes = [recipe for recipe in RECIPES if of(rows, recipe, None)]
    figure = Figure(figsize=(6.5 * len(recipes), 4), layout="constrained")
    for axes, recipe in zip(figure.subplots(1, len(recipes), squeeze=False)[0], recipes, strict=True):
        variants = [variant for variant in VARIANTS if of(rows, recipe, variant)]
        for y, variant in enumerate(reversed(variants)):
            found = losses(of(rows, recipe, variant))
            colour = "#9aa7b5" if variant.startswith("AdamW") else "#2c5f8a"
            axes.plot(found, [y] * len(found), "o", color=colour, alpha=0.5)
            axes.plot(statistics.fmean(found), y, "|", color=colour, markersize=18, markeredgewidth=2)
        axes.set_yticks(range(len(variants)), reversed(variants), fontsize=8)
        axes.set(title=RECIPES[recipe][0], xlabel="held-out loss (nats per token)")
        axes.grid(axis="x", alpha=0.25)
    figure.savefig(path, dpi=120)
