"""Train with LightningCLI, whose config names the optimizer."""

import lightning
from lightning.pytorch.cli import LightningCLI
from tiny import DATA, Tiny


class Data(lightning.LightningDataModule):
    def train_dataloader(self) -> object:
        return DATA


if __name__ == "__main__":
    LightningCLI(Tiny, Data)
