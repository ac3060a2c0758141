"""The model whose optimizer state is counted: odd shapes, so that every mode has to pad or to cut unevenly."""

import torch
from torch import Tensor, nn


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(101, 37)
        self.layers = nn.Sequential(nn.Linear(37, 129), nn.LayerNorm(129), nn.Linear(129, 301), nn.Linear(301, 127))
        self.head = nn.Linear(127, 101, bias=False)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(tokens))) * self.scale
