"""Train with Lightning, whose module makes the optimizer."""

import os

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import DATA, Tiny

# page:
import adopt_hf


class Module(Tiny):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adopt_hf.ADOPTW(adopt_hf.param_groups(self, weight_decay=0.1), lr=1e-2, betas=(0.9, 0.99))


# end of page


def main() -> None:
    lightning.seed_everything(0)
    keep = ModelCheckpoint(
        "out", "checkpoint-{step}", every_n_train_steps=2, save_top_k=-1, auto_insert_metric_name=False
    )
    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", callbacks=[keep], logger=False, enable_progress_bar=False
    )
    checkpoint = os.environ["RESUME"] and os.environ["RESUME"] + ".ckpt"
    trainer.fit(Module(), DATA, ckpt_path=checkpoint or None)


if __name__ == "__main__":
    main()
