"""The experiments by name. `python -m experiments list` shows this table, `python -m experiments NAME` runs a row."""

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple

from examples.shared.errors import InputError

SPEED, EVIDENCE, BACKENDS = "docs/benchmarks.md", "docs/evidence.md", "docs/backends.md"


class Experiment(NamedTuple):
    """A row: what is measured, by which module, where its numbers are kept, and which page shows them.

    The module has a `main()` that reads `sys.argv`, or it has the names that `load` lists.
    """

    measures: str
    module: str
    results: str  # a file or a folder of this repository; "" if none is kept
    page: str  # "" if there is none


def _of_paper(name: str, measures: str) -> Experiment:
    return Experiment(measures, f"experiments.paper.{name}", f"experiments/results/{name}.jsonl", EVIDENCE)


PAPER = {
    name: _of_paper(name, measures)
    for name, measures in {
        "toy": "the toy problem of figure 1",
        "long_toy": "the toy problem to its end, in C",
        "ablation": "ADOPT without each of its two changes (figure 3)",
        "image_classification": "accuracy of a perceptron; with --config, of any image model",
        "generative": "the likelihood of a VAE",
        "gpt2_curves": "loss curves of GPT-2 with large and small batches",
        "instability": "how many runs of GPT-2 diverge at high learning rates",
        "reinforcement": "rewards of SAC on MuJoCo",
        "sensitivity": "which of lr, beta2, eps and the clip exponent to tune",
    }.items()
}

EXPERIMENTS = {
    "step": Experiment("one step beside other optimizers", "experiments.step.run", "experiments/results/step", SPEED),
    "prebuilt": Experiment(
        "the kernel of a wheel beside the compiler's",
        "experiments.step.prebuilt",
        "docs/results/prebuilt.json",
        BACKENDS,
    ),
    "training": Experiment("whole training steps", "experiments.training.run", "experiments/results/step", SPEED),
    "monitor": Experiment(
        "the cost of the monitor", "experiments.monitor.cost", "docs/results/monitor.json", "docs/monitor.md"
    ),
    "monitor_figures": Experiment(
        "what the monitor shows of both recipes",
        "experiments.monitor.figures",
        "docs/results/monitor_runs.jsonl",
        "docs/monitor.md",
    ),
    "low_bits": Experiment(
        "losses with fewer bits", "experiments.low_bits.run", "experiments/results/low_bits.jsonl", SPEED
    ),
    "state_formats": Experiment(
        "how exactly few bits keep v",
        "experiments.low_bits.state_formats",
        "docs/results/state_formats.json",
        "docs/low_bits.md",
    ),
    "recipes": Experiment(
        "losses of the offline recipes",
        "experiments.recipes",
        "docs/results/recipes.jsonl",
        "examples/gpt2_pretraining/README.md",
    ),
    "lora": Experiment(
        "learning rates of LoRA",
        "experiments.lora.sweep",
        "experiments/results/lora_sweep.jsonl",
        "docs/fine_tuning.md",
    ),
    "gpu_check": Experiment("whether a GPU computes what it should", "experiments.gpu.run", "", SPEED),
    "defaults": Experiment(
        "which defaults suit those who come from AdamW",
        "experiments.defaults.protocol",
        "experiments/results/defaults.jsonl",
        "docs/defaults.md",
    ),
    "convert": Experiment(
        "the loss when a run of AdamW goes on with ADOPT",
        "experiments.convert.run",
        "experiments/results/convert.jsonl",
        "docs/migrate.md",
    ),
    "compare": Experiment(
        "adopt-hf compare on the offline recipes",
        "experiments.compare",
        "experiments/results/compare.jsonl",
        "docs/compare.md",
    ),
    "frameworks": Experiment(
        "what steps in other frameworks",
        "experiments.frameworks.run",
        "docs/results/frameworks.jsonl",
        "docs/frameworks.md",
    ),
    **PAPER,
    "paper": Experiment("all experiments of the paper, then evidence", "experiments.paper.all", "", EVIDENCE),
    "evidence": Experiment("nothing: keeps finished runs, draws plots", "experiments.paper.evidence", "", EVIDENCE),
}


def load(names: Iterable[str] = tuple(PAPER)) -> list[ModuleType]:
    """Return the modules of the paper's experiments with these names.

    Each has NAME, TITLE, parts(quick), one(**settings), claims(rows), table(rows) and plot(rows, path). It may have
    NOTE, the text under its title in docs/evidence.md: what is measured, and the rule of its verdicts.

    Raises:
        InputError: If a name is not among PAPER.
    """
    names = list(names)
    for name in names:
        if name not in PAPER:
            raise InputError(f"there is no experiment {name!r}; choose from {', '.join(PAPER)}")
    return [importlib.import_module(PAPER[name].module) for name in names]
