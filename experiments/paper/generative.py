"""Generative modelling: the negative log likelihood of a small VAE with Adamax and with ADOPT.

python -m experiments generative                              # scikit-learn's digits: a minute on two cores
python -m experiments generative --full                       # MNIST from the Hub, a larger net
python -m experiments generative --full --set dataset=FOLDER  # MNIST, or other pictures, from a folder

This is not the paper's NVAE: no hierarchy of latents, no convolutions, no normalising flows, no batch norm or spectral
regularisation, no KL warm-up, no EMA of the weights; one stochastic layer of a few units between nets with one hidden
layer. What is kept is the loss, the dynamic binarisation, Adamax as what NVAE is trained with, the cosine schedule of
the learning rate, and the importance-weighted bound as the measure.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.optim.lr_scheduler import CosineAnnealingLR

from adopt_hf import ADOPT
from experiments.harness import pages
from experiments.harness.claims import Claim
from experiments.harness.paired import difference, interval, verdict
from experiments.harness.runs import InputError, Part
from experiments.paper import pictures
from experiments.paper.vae import VAE, loss, negative_log_likelihood

NAME = "generative"
TITLE = "Generative modelling: a VAE's negative log likelihood"
NOTE = (
    "Not NVAE: one stochastic layer between two nets with one hidden layer each. Importance-weighted bound of the test "
    "pictures, nats per picture, lower is better; each optimizer at the learning rate with the best mean of three "
    "seeds on the validation pictures, there with ten. Reproduced if the 95 % interval of the paired difference is "
    "below 0, contradicted if above."
)
OPTIMIZERS = {"Adamax": torch.optim.Adamax, "ADOPT": ADOPT}
COLOURS = {"Adamax": "#000000", "ADOPT": "#2c5f8a"}
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)  # that choose the learning rate
MORE_SEEDS = (3, 4, 5, 6, 7, 8, 9)
CHOSEN = {"Adamax": 3e-2, "ADOPT": 1e-2}  # by SEEDS, at the default size
QUICK = {"dataset": pictures.DIGITS, "epochs": 150, "batch": 64, "hidden": 128, "latent": 8, "samples": 200}
FULL = {"dataset": "ylecun/mnist", "epochs": 400, "batch": 200, "hidden": 512, "latent": 32, "samples": 1000}
Row = Mapping[str, Any]


def parts(quick: bool) -> list[Part]:
    """The runs: every learning rate with SEEDS, the chosen one with more; at full size none is chosen yet."""
    wanted = [(name, lr, seed) for name in OPTIMIZERS for lr in RATES for seed in SEEDS]
    wanted += [
        (name, lr, seed) for name in OPTIMIZERS for lr in ([CHOSEN[name]] if quick else RATES) for seed in MORE_SEEDS
    ]
    return [
        Part(NAME, f"{name}-{lr:g}-{seed}", {"optimizer": name, "lr": lr, "seed": seed, **(QUICK if quick else FULL)})
        for name, lr, seed in wanted
    ]


def one(
    optimizer: str, lr: float, seed: int, dataset: str, epochs: int, batch: int, hidden: int, latent: int, samples: int
) -> dict[str, Any]:
    """Train one VAE.

    Returns:
        "train": the bound's mean over every epoch; "validation" and "test": the importance-weighted bound at the end.

    Raises:
        InputError: If the optimizer is unknown, a number is not positive, or `pictures.load` raises it.
    """
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {optimizer!r}")
    if min(lr, epochs, batch, hidden, latent, samples) <= 0:
        raise InputError(f"needs numbers above 0; got {lr=}, {epochs=}, {batch=}, {hidden=}, {latent=}, {samples=}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    grey = {split: x.to(device) for split, x in pictures.load(dataset).items()}
    torch.manual_seed(0)
    held_out = {split: grey[split].bernoulli() for split in ("validation", "test")}  # the same for all runs
    torch.manual_seed(seed)
    model = VAE(grey["train"].shape[1], hidden, latent).to(device)
    trained = OPTIMIZERS[optimizer](model.parameters(), lr=lr)
    batches = -(-len(grey["train"]) // batch)
    schedule = CosineAnnealingLR(trained, epochs * batches)
    curve = []
    for _ in range(epochs):
        total = torch.zeros((), device=device)
        for chosen in torch.randperm(len(grey["train"]), device=device).split(batch):
            bound = loss(model, grey["train"][chosen].bernoulli())
            trained.zero_grad()
            bound.backward()
            trained.step()
            schedule.step()
            total += bound.detach()
        curve.append(round(total.item() / batches, 3))
    torch.manual_seed(0)
    likelihoods = {split: round(negative_log_likelihood(model, x, samples), 4) for split, x in held_out.items()}
    return {"train": curve, **likelihoods}


def best(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """For each optimizer its runs at the learning rate with the lowest mean of SEEDS on the validation pictures."""
    by_rate: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_rate[row["settings"]["optimizer"]][row["settings"]["lr"]].append(row)
    return {name: min(found.values(), key=lambda runs: _mean(runs, "validation")) for name, found in by_rate.items()}


def _mean(rows: Iterable[Row], what: str) -> float:
    found = statistics.fmean(row["result"][what] for row in rows if row["settings"]["seed"] in SEEDS)
    return found if found == found else float("inf")  # NaN: diverged


def claims(rows: Iterable[Row]) -> list[Claim]:
    chosen = best(rows)
    test = {name: {row["settings"]["seed"]: row["result"]["test"] for row in runs} for name, runs in chosen.items()}
    less = difference(test["ADOPT"], test["Adamax"])
    settings = chosen["ADOPT"][0]["settings"]
    ours = ", ".join(
        f"{name} {interval(list(test[name].values()), '.2f')} (lr {chosen[name][0]['settings']['lr']:g})"
        for name in sorted(test)
    )
    return [
        Claim(
            "A VAE's negative log likelihood is lower with ADOPT than with Adamax",
            "table for NVAE on MNIST, no number here",
            f"{ours}; ADOPT less Adamax {less.text('.2f')}",
            f"a VAE, not NVAE, on {settings['dataset']}, {settings['epochs']} epochs, {len(test['ADOPT'])} seeds",
            verdict(less),
        )
    ]


def table(rows: Iterable[Row]) -> str:
    rows = list(rows)
    rates = sorted({row["settings"]["lr"] for row in rows})
    lines = []
    for name in OPTIMIZERS:
        cells = []
        for lr in rates:
            found = [
                r["result"]["test"] for r in rows if (r["settings"]["optimizer"], r["settings"]["lr"]) == (name, lr)
            ]
            cells.append(interval(found, ".2f"))
        lines.append([name, *cells])
    return pages.table(["test, nats", *(f"lr {lr:g}" for lr in rates)], lines)


def plot(rows: Iterable[Row], path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    ends = []
    for name, runs in best(rows).items():
        for row in runs:
            curve = row["result"]["train"]
            label = f"{name}, lr {row['settings']['lr']:g}" if row is runs[0] else None
            axes.plot(range(1, len(curve) + 1), curve, color=COLOURS[name], label=label)
            ends.append(curve[-1])
    axes.set(xlabel="epoch", ylabel="negative bound, training, nats", xscale="log")
    axes.set_ylim(min(ends) - 1, min(ends) + 15)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
