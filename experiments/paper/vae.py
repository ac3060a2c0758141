"""A variational autoencoder of binary pictures: two small nets, its bound, and the importance-weighted one.

p(x) = integral of p(z) p(x|z), with p(z) a standard normal, p(x|z) Bernoulli, and q(z|x) a diagonal normal.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits


class VAE(nn.Module):
    """Encoder and decoder with one hidden layer each."""

    def __init__(self, pixels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, pixels))

    def forward(self, x: Tensor, samples: int) -> Tensor:
        """log p(x, z) - log q(z|x), nats, of `samples` draws of z: (samples, batch). x: (batch, pixels), 0 or 1."""
        mean, log_std = self.encoder(x).chunk(2, dim=-1)
        noise = torch.randn(samples, *mean.shape, device=x.device)
        z = mean + log_std.exp() * noise
        logits = self.decoder(z)
        log_likelihood = -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(-1)
        log_posterior = -0.5 * (noise**2 + 2 * log_std + math.log(2 * math.pi)).sum(-1)
        return log_likelihood + log_prior - log_posterior


def loss(model: VAE, x: Tensor) -> Tensor:
    """The negative evidence lower bound, nats per picture, with one draw of z."""
    return -model(x, 1).mean()


@torch.no_grad()
def negative_log_likelihood(model: VAE, x: Tensor, samples: int, batch: int = 100) -> float:
    """The importance-weighted bound with `samples` draws of z (Burda et al., 2016): nats per picture, from above."""
    bounds = [model(part, samples).logsumexp(0) - math.log(samples) for part in x.split(batch)]
    return -torch.cat(bounds).mean().item()
