"""A module of a few layers, and its data."""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(16, 4, generator=GENERATOR)
DATA = DataLoader(
    TensorDataset(INPUTS, INPUTS.sum(1, keepdim=True)), batch_size=16
)  # an epoch is a step: Lightning resumes at the start of an epoch


class Tiny(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.layers(inputs), targets)
