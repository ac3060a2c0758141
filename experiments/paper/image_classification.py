"""Image classification: a perceptron with Adam, AMSGrad, AdaShift and ADOPT; and any other model by a config.

python -m experiments image_classification            # scikit-learn's digits, offline, minutes
python -m experiments image_classification --full     # MNIST, 784 hidden units

As in the paper the learning rate is alpha / sqrt(t), alpha is chosen for each optimizer from 1, 0.1, 0.01 and 0.001, in
three trials. Here it is chosen by the accuracy on held-out training images, and reported is that on the test images; at
the chosen alpha there are ten trials, and optimizers are compared trial by trial, a seed each.

With `--config` it is one run of one optimizer instead, every option of transformers.TrainingArguments included:

python -m experiments image_classification --config experiments/paper/configs/cifar10_resnet18.yaml --optim adamw_torch
python -m experiments image_classification --config experiments/paper/configs/imagenet_swin_t.yaml --optim adopt
"""

import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from experiments.harness import command, pages
from experiments.harness.claims import Claim
from experiments.harness.paired import all_of, difference, half_width, interval, verdict
from experiments.harness.runs import InputError, Part

NAME = "image_classification"
TITLE = "Image classification"
SEEDS = (0, 1, 2)  # that choose alpha
MORE_SEEDS = (3, 4, 5, 6, 7, 8, 9)
ALPHAS = (1.0, 0.1, 0.01, 0.001)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "Adam": {"optim": "adamw_torch", "weight_decay": 0.0},
    "AMSGrad": {"optimizer": "amsgrad"},
    "AdaShift": {"optimizer": "adashift"},
    "ADOPT": {"optim": "adopt", "weight_decay": 0.0},
}
CHOSEN = {"Adam": 0.01, "AMSGrad": 0.01, "AdaShift": 0.1, "ADOPT": 0.1}  # by SEEDS, at the default size
COLOURS = {"Adam": "#000000", "AMSGrad": "#2f8f4e", "AdaShift": "#d08c2e", "ADOPT": "#2c5f8a"}
STYLES = {"Adam": "-", "AMSGrad": "--", "AdaShift": "-", "ADOPT": "-"}  # AMSGrad lies on Adam where v only grows
CONFIGS = {True: ("digits_mlp.yaml", 30), False: ("mnist_mlp.yaml", 50)}  # and epochs
NOTE = (
    "A perceptron of one hidden layer, learning rate alpha / sqrt(t); for each optimizer alpha is chosen by the mean "
    "accuracy of three trials on held-out training images, and reported is the error on the test images in ten. "
    "Reproduced if the 95 % interval of the paired difference to each of the others is below 0, contradicted if it is "
    "above for one."
)
IMAGENET = (
    "table 1, 200 and 300 epochs: AdamW 79.29 ± 0.05 and 81.26 ± 0.04, AMSGrad 78.91 ± 0.03 and 81.17 ± 0.03, ADOPT "
    "79.62 ± 0.03 and 81.50 ± 0.04 %"
)


def parts(quick: bool) -> list[Part]:
    """The runs: every alpha with SEEDS, and the chosen one with more; at full size none is chosen yet, so every one."""
    config, epochs = CONFIGS[quick]
    wanted = [(seed, optimizer, alpha) for seed in SEEDS for optimizer in OPTIMIZERS for alpha in ALPHAS]
    wanted += [
        (seed, optimizer, alpha)
        for seed in MORE_SEEDS
        for optimizer in OPTIMIZERS
        for alpha in ([CHOSEN[optimizer]] if quick else ALPHAS)
    ]
    return [
        Part(
            NAME,
            f"{optimizer.lower()}-alpha{alpha:g}-{seed}",
            {"config": config, "optimizer": optimizer, "alpha": alpha, "seed": seed, "epochs": epochs},
        )
        for seed, optimizer, alpha in wanted
    ]


def one(config: str, optimizer: str, alpha: float, seed: int, epochs: int) -> dict[str, Any]:
    """Train once; see image_training.train for what comes back."""
    import torch

    from experiments.paper import image_arguments, image_training

    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    options = OPTIMIZERS[optimizer] | {
        "learning_rate": alpha,
        "seed": seed,
        "num_train_epochs": epochs,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    words = command.words(image_arguments.CONFIGS / config, options)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return image_training.train(*image_arguments.parse([*words, "--output_dir", folder], __doc__))
        except SystemExit:  # it has said why; a worker that exits would be waited for
            raise InputError(f"{config} does not take {' '.join(words[2:])}") from None


def alphas(rows: Sequence[dict[str, Any]]) -> list[float]:
    return sorted({row["settings"]["alpha"] for row in rows}, reverse=True)


def chosen(rows: Sequence[dict[str, Any]], optimizer: str) -> float:
    """The alpha with the best mean accuracy of SEEDS on held-out training images; the larger one of equals."""
    found = {
        alpha: fmean(
            row["result"]["validation_accuracy"]
            for row in _of(rows, optimizer, alpha)
            if row["settings"]["seed"] in SEEDS
        )
        for alpha in alphas(rows)
    }
    return max(found, key=lambda alpha: (found[alpha], alpha))


def claims(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    found = {name: _by_seed(rows, name, chosen(rows, name)) for name in OPTIMIZERS}
    # Errors are multiples of one test image.
    image = _image([*found["ADOPT"].values(), *found["Adam"].values()])
    less = {
        name: difference(found["ADOPT"], errors, resolution=image) for name, errors in found.items() if name != "ADOPT"
    }
    return [
        Claim(
            "A perceptron on MNIST: ADOPT's accuracy is above that of Adam, AMSGrad and AdaShift",
            "section 5, MNIST (a figure with 95 % intervals of three trials, no number in the text)",
            "test error in %: "
            + ", ".join(f"{name} {interval(list(errors.values()), '.2f')}" for name, errors in found.items())
            + "; ADOPT less "
            + ", less ".join(f"{name} {one_.text('.2f')}" for name, one_ in less.items()),
            _conditions(rows),
            all_of([verdict(one_) for one_ in less.values()]),
        ),
        Claim(
            "ResNet-18 on CIFAR-10: ADOPT converges a little faster than Adam",
            "section 5, CIFAR-10 (a figure; no number in the text)",
            "not measured: --config experiments/paper/configs/cifar10_resnet18.yaml, with a GPU",
            "nothing was run",
            "not at this scale",
        ),
        Claim(
            "Swin-T on ImageNet: ADOPT's top-1 accuracy is above AdamW's and AMSGrad's",
            IMAGENET,
            "not measured: --config experiments/paper/configs/imagenet_swin_t.yaml, with 8 GPUs",
            "nothing was run",
            "not at this scale",
        ),
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for name in OPTIMIZERS:
        cells = [interval(_errors_at(rows, name, alpha), ".2f") for alpha in alphas(rows)]
        cells.append(f"**{interval(_errors(rows, name), '.2f')}** (alpha {chosen(rows, name):g})")
        lines.append([name, *cells])
    head = ["test error, %", *(f"alpha {alpha:g}" for alpha in alphas(rows)), "at the chosen alpha"]
    return f"{pages.table(head, lines)}\n\n{_conditions(rows)}. Mean and 95 % interval of the trials."


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw, at the chosen alphas, the test accuracies over epochs with 95 % bands; and the errors over alphas."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    curves, choice = figure.subplots(1, 2)
    ends: list[list[float]] = []
    for name, colour in COLOURS.items():
        found = [row["result"] for row in _of(rows, name, chosen(rows, name))]
        trials = [[100 * accuracy for accuracy in at] for at in zip(*(x["accuracies"] for x in found), strict=True)]
        epochs, centres = found[0]["epochs"], [fmean(at) for at in trials]
        # Adam broad and below, so that what lies on it leaves it in sight.
        look: dict[str, Any] = {"color": colour, "linestyle": STYLES[name], "linewidth": 3.5 if name == "Adam" else 1.6}
        curves.plot(epochs, centres, label=f"{name}, alpha {chosen(rows, name):g}", **look)
        halves = [half_width(at) if len(at) > 1 else 0.0 for at in trials]
        low, high = ([c + sign * h for c, h in zip(centres, halves, strict=True)] for sign in (-1, 1))
        curves.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        errors = [fmean(_errors_at(rows, name, alpha)) for alpha in alphas(rows)]
        choice.plot(alphas(rows), errors, marker="o", label=name, **look)
        ends.append(centres)
    # The first epochs would take the room of the rest, and no accuracy is above 100 %.
    low_end = min(value for centres in ends for value in centres[len(centres) // 4 :])
    curves.set(xlabel="epoch", ylabel="test accuracy, %, mean and 95 %", ylim=(low_end - 1, 100))
    choice.set(xscale="log", yscale="log", xlabel="alpha", ylabel="test error, %")
    for axes in (curves, choice):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    words = sys.argv[1:]
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        command.main(sys.modules[__name__])
        return
    from experiments.paper import image_training

    try:
        image_training.main(words)
    except InputError as error:
        command.fail(error)


def _of(rows: Sequence[dict[str, Any]], optimizer: str, alpha: float) -> list[dict[str, Any]]:
    return [row for row in rows if row["settings"]["optimizer"] == optimizer and row["settings"]["alpha"] == alpha]


def _errors_at(rows: Sequence[dict[str, Any]], optimizer: str, alpha: float) -> list[float]:
    """Test errors in %."""
    return [100 * (1 - row["result"]["test_accuracy"]) for row in _of(rows, optimizer, alpha)]


def _errors(rows: Sequence[dict[str, Any]], optimizer: str) -> list[float]:
    return _errors_at(rows, optimizer, chosen(rows, optimizer))


def _by_seed(rows: Sequence[dict[str, Any]], optimizer: str, alpha: float) -> dict[int, float]:
    """{seed: test error in %}."""
    seeds = [row["settings"]["seed"] for row in _of(rows, optimizer, alpha)]
    return dict(zip(seeds, _errors_at(rows, optimizer, alpha), strict=True))


def _image(errors: Sequence[float]) -> float:
    """Return what one test image is worth in %: the smallest difference of two of the errors, 0 of equal ones."""
    ordered = sorted(set(errors))
    return min((b - a for a, b in itertools.pairwise(ordered) if b - a > 1e-6), default=0.0)


def _conditions(rows: Sequence[dict[str, Any]]) -> str:
    result, settings = rows[0]["result"], rows[0]["settings"]
    seeds = sorted({row["settings"]["seed"] for row in rows})
    return (
        f"perceptron of {result['parameters']:,} parameters, {settings['config']}, {round(result['epochs'][-1])} "
        f"epochs, alpha / sqrt(t), alpha chosen on held-out training images, seeds {', '.join(map(str, seeds))}"
    )
