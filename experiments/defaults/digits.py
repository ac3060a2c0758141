"""Models of scikit-learn's digits: a perceptron, a small vision transformer, a VAE."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from experiments.defaults import stacked
from experiments.defaults.training import Batches, Named, seeded, shuffled

LATENT, DRAWS = 8, 20


@functools.cache
def _digits() -> dict[str, Tensor]:
    """ "x" (1,197 pictures, 64 pixels) to learn from and "y" their classes; "test_x" and "test_y" of the other 600."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=seeded(0))
    learn, test = order[:1197], order[1197:]  # as in experiments/paper/pictures.py, its validation among the test
    return {"x": x[learn], "y": y[learn], "test_x": x[test], "test_y": y[test]}


def perceptron_weights(seed: int) -> Named:
    torch.manual_seed(seed)
    hidden, classifier = torch.nn.Linear(64, 256), torch.nn.Linear(256, 10)
    model = torch.nn.ModuleDict({"hidden": hidden, "classifier": classifier})
    return {name: weight.detach() for name, weight in model.named_parameters()}


def plain_batches(seed: int) -> Batches:
    digits = _digits()
    for chosen in shuffled(len(digits["x"]), 64, seed):
        yield digits["x"][chosen], digits["y"][chosen]


def perceptron_loss(w: Named, x: Tensor, y: Tensor) -> Tensor:
    return stacked.cross_entropy(stacked.perceptron(w, x), y)


def perceptron_evaluate(w: Named) -> Tensor:
    digits, seeds = _digits(), len(w["hidden.weight"])
    return perceptron_loss(w, digits["test_x"].expand(seeds, -1, -1), digits["test_y"].expand(seeds, -1))


def vit_weights(seed: int) -> Named:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10))
    return {name: weight.detach() for name, weight in model.named_parameters()}


def shifted_batches(seed: int) -> Batches:
    """Pictures, each batch moved by up to one pixel in both directions: few pictures would be learnt by heart."""
    digits, generator = _digits(), seeded(1000 + seed)
    padded = F.pad(digits["x"].view(-1, 1, 8, 8), (1, 1, 1, 1))
    for chosen in shuffled(len(padded), 32, seed):
        top, left = torch.randint(3, (2,), generator=generator).tolist()
        yield padded[chosen, :, top : top + 8, left : left + 8], digits["y"][chosen]


def vit_loss(w: Named, x: Tensor, y: Tensor) -> Tensor:
    return stacked.cross_entropy(stacked.vit(w, x, heads=2), y)


def vit_evaluate(w: Named) -> Tensor:
    digits, seeds = _digits(), len(w["classifier.weight"])
    pixels = digits["test_x"].view(-1, 1, 8, 8).expand(seeds, -1, -1, -1, -1)
    return vit_loss(w, pixels, digits["test_y"].expand(seeds, -1))


def vae_weights(seed: int) -> Named:
    from experiments.paper.vae import VAE

    torch.manual_seed(seed)
    return {name: weight.detach() for name, weight in VAE(64, 128, LATENT).named_parameters()}


def vae_batches(seed: int) -> Batches:
    grey, generator = _digits()["x"], seeded(1000 + seed)
    for chosen in shuffled(len(grey), 64, seed):
        yield grey[chosen].bernoulli(generator=generator), torch.randn(64, LATENT, generator=generator)


def vae_loss(w: Named, x: Tensor, noise: Tensor) -> Tensor:
    return stacked.vae_bound(w, x, noise).mean(1)


def vae_evaluate(w: Named) -> Tensor:
    """The bound, with DRAWS draws of z for each picture."""
    generator, seeds = seeded(0), len(w["encoder.0.weight"])
    x = _digits()["test_x"].bernoulli(generator=generator)
    noises = (torch.randn(len(x), LATENT, generator=generator) for _ in range(DRAWS))
    bounds = [vae_loss(w, x.expand(seeds, -1, -1), noise.expand(seeds, -1, -1)) for noise in noises]
    return torch.stack(bounds).mean(0)
